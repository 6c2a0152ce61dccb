"""What a step costs: seconds, atoms per second, memory, the second view's share.

Logged in training at every step that the console shows (``--print-every``), over the steps since
the last one:

``s_per_step``          from asking for the batch to the end of the optimizer's step; validation,
                        checkpoints and logs are not in it
``atoms_per_s``         clean atoms of all ranks (a second view is not counted)
``structures_per_s``    of all ranks
``data_share_of_time``  waiting for the batch, rank 0
``memory_GB``           the largest peak of all ranks since the start: of torch's allocations on a
                        GPU, of the process on a CPU
``ndem_share_of_time``  of forward and backward, measured once; see :func:`second_view_share`
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from typing import Any

import torch
from fairchem.core.common import distutils
from torch import Tensor, nn
from torch_geometric.data import Batch

from ndem_ocp.training.rng import generators_kept
from ndem_ocp.training.survival import SurvivingTrainer

_REPEATS = 2


class StepCosts(SurvivingTrainer):
    """fairchem's trainer with a clock."""

    def load(self, inference_only: bool) -> None:
        self._clock = Clock()
        self._second_view_share: float | None = None
        super().load(inference_only)

    def loader_ready(self) -> None:
        super().loader_ready()
        self._clock.begin()

    def between_steps(self, last: bool = False) -> None:
        super().between_steps(last)
        self._clock.begin()

    def _forward(self, batch: Batch) -> dict[str, Tensor]:
        if self.model.training:
            self._clock.got(batch)
        return super()._forward(batch)

    def _backward(self, loss: Tensor) -> None:
        super()._backward(loss)
        if self._is_printed():
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self._clock.end()
            self._log_costs()
        else:
            self._clock.end()

    def _is_printed(self) -> bool:
        return self.step % self.config["cmd"]["print_every"] == 0

    def _log_costs(self) -> None:
        clock, self._clock = self._clock, Clock()
        if not clock.steps:
            return
        ranks = distutils.gather_objects((*clock.counts(), peak_memory(self.device)))
        if self.logger is None:
            return
        atoms, structures, memory = zip(*ranks)
        costs = {
            "s_per_step": clock.seconds / clock.steps,
            "atoms_per_s": sum(atoms) / clock.seconds,
            "structures_per_s": sum(structures) / clock.seconds,
            "data_share_of_time": clock.waited / clock.seconds,
            "memory_GB": max(memory) / 1e9,
        }
        if self._second_view_share is not None:
            costs["ndem_share_of_time"] = self._second_view_share
        self.logger.log(costs, step=self.step, split="train")

    def measure_second_view(self, plain: Batch, both: Batch) -> None:
        """Time both kinds of pass, in the first printed step of this start; no trace is left."""
        if self._second_view_share is not None or not self._is_printed():
            return
        with self._clock.stopped(), generators_kept(self.device):
            self.optimizer.zero_grad()  # fairchem does it next; their room is needed here
            try:
                self._second_view_share = second_view_share(
                    self._unwrapped_model, plain, both, amp=self.scaler is not None
                )
            except torch.cuda.OutOfMemoryError:
                logging.info("No memory to measure the second view's share of the time.")
                self._second_view_share = float("nan")  # no logger shows it, and once is enough


class Clock:
    """Adds up the time of steps between two printed ones."""

    def __init__(self) -> None:
        self.steps, self.seconds, self.waited = 0, 0.0, 0.0
        self._structures = 0
        self._atoms: Tensor | int = 0
        self._began: float | None = None

    def begin(self) -> None:
        """The next batch is asked for."""
        self._began = time.perf_counter()
        self._waiting = True

    def got(self, batch: Batch) -> None:
        """The batch is here."""
        if self._began is not None and self._waiting:
            self.waited += time.perf_counter() - self._began
            self._waiting = False
        self._structures += batch.natoms.numel()
        self._atoms = self._atoms + batch.natoms.sum()  # on its device: read once per line

    def end(self) -> None:
        """The optimizer's step is done."""
        if self._began is not None:
            self.seconds += time.perf_counter() - self._began
            self.steps += 1
            self._began = None

    def counts(self) -> tuple[int, int]:
        """Atoms and structures so far."""
        return int(self._atoms), self._structures

    def stopped(self) -> Clock:
        return self

    def __enter__(self) -> None:
        self._paused = time.perf_counter()

    def __exit__(self, *error: Any) -> None:
        if self._began is not None:
            self._began += time.perf_counter() - self._paused


def second_view_share(model: nn.Module, plain: Batch, both: Batch, amp: bool = False) -> float:
    """1 - (time of a plain pass) / (time of a pass over both views), forward and backward.

    Each is done twice on one batch, and the faster one counts: some four passes more in a whole
    run. The loss is a stand-in, the sum of all squared outputs, whose backward takes the same way.
    Weights, gradients and buffers are left as they are; random numbers are drawn.

    Args:
        model: without DDP, in training mode.
        plain: the clean batch, on the model's device.
        both: the same batch as the objective shows it.
    """
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    try:
        seconds = [
            min(_pass(model, batch, amp) for _ in range(_REPEATS)) for batch in (plain, both)
        ]
    finally:
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(buffers[name])
    return 1.0 - seconds[0] / seconds[1]


def _pass(model: nn.Module, batch: Batch, amp: bool) -> float:
    """Seconds of one forward and backward."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    batch = batch.clone()  # some models mark the positions
    cuda = batch.pos.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(batch.pos.device)
    began = time.perf_counter()
    with torch.autocast("cuda", enabled=amp):
        outputs = model(batch)
    loss = sum(tensor.float().square().sum() for tensor in _tensors(outputs))
    torch.autograd.grad(loss, weights, allow_unused=True)
    if cuda:
        torch.cuda.synchronize(batch.pos.device)
    return time.perf_counter() - began


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.requires_grad else []
    return [tensor for value in outputs.values() for tensor in _tensors(value)]


def peak_memory(device: torch.device) -> int:
    """Bytes: the peak of torch's allocations on a GPU, of this process's resident memory else."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux
