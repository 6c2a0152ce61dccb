"""Several gloo ranks on this machine, and NDeM's trainer in float64 on a chosen share of the data.

In float64, with the noise a function of the structure and without dropout, runs that share the same
structures differently must agree to rounding. What a rank saw comes back as a :class:`Seen`.
"""

from __future__ import annotations

import copy
import gc
import os
import socket
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fairchem.core.common import distutils
from torch import Tensor

import ndem_ocp
from fairchem_kit.training.distributed import rewrap
from helpers import default_dtype, use_float64_graphs
from ndem_ocp.method import Noise, draw_noise
from ndem_ocp.method import objective as objective_module
from ndem_ocp.testing import trainer_of

Batches = list[list[list[int]]]  # [step][rank] -> structures
# Gate activations make the random edge frames a gauge that no result depends on.
EXACT = {"use_gate_act": True, "use_grid_mlp": False, "drop_path_rate": 0.0, "alpha_drop": 0.0}


# --- processes ---------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def fork_ranks(world: int, function: Callable[..., None], *args: Any) -> None:
    """``function(rank, *args)`` in ``world`` processes. Forked: to import everything again would
    take each of them seven seconds, longer than most of what they are to do.

    Raises:
        torch.multiprocessing.ProcessRaisedException: with the traceback of a rank that failed.
    """
    ranks = mp.start_processes(
        _forked, (function, args), nprocs=world, join=False, start_method="fork"
    )
    try:
        while not ranks.join():
            pass
    finally:  # at a test's limit of time, ranks that wait for each other would wait on
        for process in ranks.processes:
            process.kill()


def _forked(rank: int, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    gc.freeze()  # what the parent left belongs to threads that do not run here: collecting it hangs
    function(rank, *args)


def run_ranks(world: int, folder: Path, function: Callable[..., Any], *args: Any) -> list[Any]:
    """``function(rank, *args)`` on ``world`` gloo ranks; what each returned, in order.

    Raises:
        torch.multiprocessing.ProcessRaisedException: with the traceback of a rank that failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fork_ranks(world, _rank, world, free_port(), folder, function, args)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world)]


def _rank(rank: int, world: int, port: int, folder: Path, function: Any, args: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    torch.save(function(rank, *args), folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


# --- one run of the trainer --------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A run to be repeated on other numbers of ranks.

    Attributes:
        train, val: structures of each step and rank, for one rank, for two, ...; None: fairchem's
            own sampler with a batch of ``batch_size`` shared by all ranks.
        without_free: structures whose atoms are all fixed. still: structures that get no noise.
        random: the noise that the trainer draws, in place of one that depends on the structure.
    """

    train: dict[int, Batches] | None = None
    val: dict[int, Batches] | None = None
    batch_size: int = 8
    epochs: int = 1
    ndem: dict[str, Any] = field(default_factory=dict)
    without_free: Collection[int] = ()
    still: Collection[int] = ()
    random: bool = False
    seed: int = 0
    first_n: int | None = None  # of the training and the validation set


@dataclass
class Seen:
    """What a rank saw of a run."""

    losses: list[float] = field(default_factory=list)  # of each training step, this rank's share
    gradients: list[dict[str, Tensor]] = field(default_factory=list)  # after the exchange
    weights: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)  # training: total, numel
    val: dict[str, dict[str, float]] = field(default_factory=dict)  # what ``validate`` returned
    structures: list[list[int]] = field(default_factory=list)  # of each training step
    eps: list[Tensor] = field(default_factory=list)  # noise of each training step, Angstrom


class ExactTrainer(ndem_ocp.NDeMTrainer):
    """NDeM's trainer in float64 on the structures of a :class:`Case`."""

    case: Case = Case()

    def load_model(self) -> None:
        with default_dtype(torch.float64):
            super().load_model()
            self._unwrapped_model.double()
            use_float64_graphs(self._unwrapped_model.backbone)
            self.model = rewrap(self.model)  # its buckets were made for float32

    def load_references_and_normalizers(self) -> None:
        super().load_references_and_normalizers()
        for normalizer in self.normalizers.values():
            normalizer.double()

    def get_sampler(self, dataset: Any, batch_size: int, shuffle: bool) -> Any:
        chosen = self.case.train if shuffle else self.case.val
        world = distutils.get_world_size()
        if chosen is None:
            return super().get_sampler(dataset, batch_size // world, shuffle)
        return Chosen([step[distutils.get_rank()] for step in chosen[world]], world)

    def get_dataloader(self, dataset: Any, sampler: Any, workers: int | None = None) -> Any:
        given = self.collater
        self.collater = partial(_collate, given, self.case)
        loader = super().get_dataloader(Numbered(dataset), sampler, workers)
        self.collater = given
        return loader


class Chosen:
    """In place of fairchem's sampler: the same batches in every epoch."""

    def __init__(self, batches: list[list[int]], world: int) -> None:
        self.batches = batches
        self.batch_size = len(batches[0])
        self.sampler = SimpleNamespace(num_replicas=world)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def set_epoch_and_start_iteration(self, epoch: int, start: int) -> None:
        pass


class Numbered:
    """A data set whose structures know their numbers."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[int(index)]
        item.number = torch.tensor([int(index)])
        return item


def _collate(collate: Callable[..., Any], case: Case, items: list[Any]) -> Any:
    for item in items:
        if int(item.number) in case.without_free:
            item.fixed = torch.ones_like(item.fixed)
    batch = collate(items)
    for key in ("pos", "cell", "energy", "forces"):
        batch[key] = batch[key].double()
    return batch


def noise_of_structures(case: Case, seen: Seen, pos, graph_index, num_graphs, fixed, settings, *_):
    """In place of random noise: the same for a structure on whichever rank it is.

    About half of the free atoms move; with DeNS, those of about half of the structures.
    """
    wave = torch.sin(1e3 * pos)
    viewed = torch.ones(num_graphs, dtype=torch.bool)
    if settings.objective == "dens":
        sums = torch.zeros(num_graphs, dtype=pos.dtype).index_add(0, graph_index, wave[:, 1])
        viewed = sums > 0
    still = torch.tensor([number in case.still for number in seen.structures[-1]])
    moved = (wave[:, 0] > 0) & (fixed == 0) & (viewed & ~still)[graph_index]
    sigma = torch.full_like(wave[:, 0], 0.05)
    return Noise(0.05 * wave * moved[:, None], sigma, moved, viewed[graph_index])


def run_case(
    rank: int, cases: dict[str, Case], config: dict[str, Any], run_dir: Path
) -> dict[str, Seen]:
    """Every case in turn on the ranks of this process group, or on this process alone."""
    with default_dtype(torch.float64):
        return {name: _run(config, run_dir / name, case) for name, case in cases.items()}


def _run(config: dict[str, Any], run_dir: Path, case: Case) -> Seen:
    config = copy.deepcopy(config)
    config["task"]["ndem"].update(case.ndem)
    config["optim"].update(
        batch_size=case.batch_size, eval_batch_size=case.batch_size, max_epochs=case.epochs
    )
    if case.first_n is not None:
        config["dataset"]["train"]["first_n"] = case.first_n
    ExactTrainer.case = case
    seen = Seen()
    if not case.random:
        objective_module.draw_noise = partial(noise_of_structures, case, seen)
    try:
        trainer = trainer_of(config, run_dir, name="ranks.ExactTrainer", seed=case.seed)
        _record(trainer, seen)
        trainer.train(disable_eval_tqdm=True)
        weights = trainer._unwrapped_model.state_dict()
        seen.weights = {name: value.clone() for name, value in weights.items()}
        seen.sums = {name: (m["total"], m["numel"]) for name, m in trainer.metrics.items()}
        seen.val = trainer.validate(disable_tqdm=True)
    finally:
        objective_module.draw_noise = draw_noise
    return seen


def _record(trainer: Any, seen: Seen) -> None:
    forward, backward = trainer._forward, trainer._backward

    def recording_forward(batch: Any) -> Any:
        if not trainer.model.training:
            return forward(batch)
        seen.structures.append(batch.number.tolist())
        out = forward(batch)
        seen.eps.append(trainer.ndem.noise.eps)
        return out

    def recording_backward(loss: Tensor) -> None:
        seen.losses.append(loss.item())
        backward(loss)
        named = trainer._unwrapped_model.named_parameters()
        seen.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    trainer._forward, trainer._backward = recording_forward, recording_backward
