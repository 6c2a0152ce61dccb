"""``ndem bench inference``: energies and forces, latency and throughput."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import match_state_dict
from torch import Tensor, nn
from tqdm import tqdm

from fairchem_kit.checkpoints import CheckpointError, read_checkpoint
from fairchem_kit.checkpoints.config import check_config
from ndem_ocp.bench.arms import GRAPH_METHOD, quiet
from ndem_ocp.bench.batches import Batches, find_data, open_data, read_batches
from ndem_ocp.bench.clock import Stopwatch, Timing, parameters_of, timed_calls
from ndem_ocp.bench.configs import set_key
from ndem_ocp.bench.errors import BenchError
from ndem_ocp.bench.measure import arm_results, interleave, summary
from ndem_ocp.bench.options import Common
from ndem_ocp.bench.rounds import BATCHES, REFERENCE
from ndem_ocp.models import AUXILIARY_OUTPUT
from ndem_ocp.models.build import TWO_VIEW_NAMES
from ndem_ocp.models.dens import DENS_BACKBONES, DENS_NAMES, FORCE_EMBEDDING
from ndem_ocp.models.equiformer_names import to_ours, to_upstream

OURS, TRAINED = "ours", "trained"
UNITS = {
    "wall_s": "s per batch, energy and forces",
    "process_s": "s of processor time per batch, all threads",
    "phases_s": "s per batch; graph is part of it",
    "atoms_per_s": "atoms per s",
    "structures_per_s": "structures per s",
    "ratio": "to upstream on the same batch in the same round",
    "difference": "largest difference to upstream over the largest value, first batch",
}


class InferenceBench:
    """Upstream's model and ours with the same weights, without gradients.

    With a checkpoint they have its weights, and a third arm, ``trained``, is the checkpoint's own
    model as fairchem would build it, with the auxiliary head, which does not run.
    """

    def __init__(
        self, common: Common, checkpoint: Path | None = None, unsafe: bool = False
    ) -> None:
        self.common = common
        self.checkpoint = checkpoint
        self.data = find_data(common.data, common.progress)
        train = common.config["dataset"]["train"]
        self.dataset = open_data(self.data, key_mapping=train.get("key_mapping"))
        self.model, state = copy.deepcopy(common.config["model"]), None
        if checkpoint is not None:
            self.model, state = read_model(checkpoint, unsafe)
        self.models = build_models(self.model, state, common)
        self.settings: list[dict[str, Any]] = []
        self.interrupted = False

    def run(self, batch_sizes: list[int], repeats: int, warmup: int) -> None:
        """Measure; ``settings`` has the results so far, also after Ctrl-C."""
        try:
            for batch_size in batch_sizes:
                self._measure(batch_size, repeats, warmup)
                if self.interrupted:
                    return
        except KeyboardInterrupt:
            self.interrupted = True

    def _measure(self, batch_size: int, repeats: int, warmup: int) -> None:
        common = self.common
        batches = read_batches(self.dataset, batch_size, BATCHES, common.seed)
        watch = Stopwatch(common.device)

        def evaluation(name: str, number: int) -> Timing:
            model = self.models[name]
            batch = batches.on(number, common.device)
            torch.manual_seed(common.seed + number)
            watch.start()
            with (
                torch.no_grad(),
                torch.autocast("cuda", enabled=common.amp),
                timed_calls(getattr(model, "backbone", None), GRAPH_METHOD, watch, "graph"),
            ):
                model(batch)
            return watch.stop()

        def progress(numbers: Any) -> Any:
            text = f"batch {batch_size}"
            return tqdm(numbers, desc=text, disable=not common.progress, leave=False)

        measured = interleave(list(self.models), evaluation, repeats, warmup, progress)
        self.interrupted = measured.interrupted
        rounds = len(measured[REFERENCE])
        if not rounds:
            return
        seen = [batches.atoms[(warmup + i) % BATCHES] for i in range(rounds)]
        results = arm_results(measured, REFERENCE, seen)
        for name, model in self.models.items():
            walls = [timing.wall_s for timing in measured[name]]
            results[name] |= {
                "structures_per_s": summary([batch_size / wall for wall in walls]),
                "parameters": parameters_of(model),
                "difference": self._difference(name, batches),
            }
        self.settings.append(
            {
                "batch_size": batch_size,
                "atoms": summary(batches.atoms),
                "rounds": rounds,
                "arms": results,
            }
        )

    def _difference(self, name: str, batches: Batches) -> dict[str, float]:
        """Largest difference to upstream's outputs, relative to the largest of them."""
        outputs = []
        for model in (self.models[REFERENCE], self.models[name]):
            torch.manual_seed(self.common.seed)
            with torch.no_grad():
                outputs.append(flat(model(batches.on(0, self.common.device))))
        reference, found = outputs
        return {
            key: float((found[key] - value).abs().max() / value.abs().max().clamp_min(1e-30))
            for key, value in reference.items()
        }

    def result(self) -> dict[str, Any]:
        """The content of the JSON file, without provenance."""
        config = {**self.common.config, "model": plain_model(self.model)}
        return {
            "what": "seconds of one evaluation of energy and forces",
            **self.common.described(config, self.data),
            "checkpoint": None if self.checkpoint is None else self.checkpoint.name,
            "units": UNITS,
            "interrupted": self.interrupted,
            "settings": self.settings,
        }


def flat(out: dict[str, Any]) -> dict[str, Tensor]:
    """A hydra model's outputs by name, whether or not they are grouped by head."""
    found: dict[str, Tensor] = {}
    for name, value in out.items():
        found |= value if isinstance(value, dict) else {name: value}
    return found


def read_model(path: Path, unsafe: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(model section, weights) of a checkpoint of fairchem's or ours.

    Raises:
        BenchError: if it cannot be read, or its model is not a hydra model.
    """
    try:
        checkpoint = read_checkpoint(path, unsafe=unsafe)
        config = checkpoint.get("config")
        model = config.get("model") if isinstance(config, dict) else None
        if model:
            check_config(config, path)
    except CheckpointError as error:
        raise BenchError(str(error)) from error
    if not isinstance(model, dict) or "backbone" not in model:
        raise BenchError(f"{path}: its config has no hydra model (name: hydra with backbone).")
    return model, checkpoint["state_dict"]


def plain_model(model: dict[str, Any]) -> dict[str, Any]:
    """Upstream's model section for a model of any objective, without parts only used in
    training."""
    model = copy.deepcopy(model)
    if model["name"] in (*TWO_VIEW_NAMES, *DENS_NAMES):
        model["name"] = "hydra"
        for key in ("auxiliary_head", "learned_curvature", "force_head"):
            model.pop(key, None)
    plain_of = {dens: plain for plain, dens in DENS_BACKBONES.items()}
    backbone = model["backbone"]
    backbone["model"] = plain_of.get(backbone["model"], backbone["model"])
    return to_upstream(model)


def build_models(
    model: dict[str, Any], state: dict[str, Tensor] | None, common: Common
) -> dict[str, nn.Module]:
    """arm -> model in evaluation mode; all have one set of weights."""
    plain = plain_model(model)
    ours = to_ours(plain)
    for setting in common.ours:
        set_key(ours, setting)
    sections = {REFERENCE: plain, OURS: ours}
    if state is not None:
        sections[TRAINED] = model
    with quiet():
        torch.manual_seed(common.seed)
        models = {name: _build(section) for name, section in sections.items()}
    weights = models[REFERENCE].state_dict() if state is None else state
    for name, built in models.items():
        _load(built, weights, name)
        built.to(common.device).eval()
    return models


def _build(section: dict[str, Any]) -> nn.Module:
    arguments = copy.deepcopy(section)
    return registry.get_model_class(arguments.pop("name"))(**arguments)


def _load(model: nn.Module, weights: dict[str, Tensor], name: str) -> None:
    own = model.state_dict()
    given = match_state_dict(own, weights)
    only_in_training = (f"output_heads.{AUXILIARY_OUTPUT}.", f"backbone.{FORCE_EMBEDDING}.")
    given = {k: v for k, v in given.items() if k in own or not k.startswith(only_in_training)}
    try:
        model.load_state_dict(given)
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise BenchError(f"{name} does not take the weights: {first}") from error
