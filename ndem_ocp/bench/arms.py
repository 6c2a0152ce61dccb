"""The arms of ``ndem bench step``: trainers with the same data and weights.

    upstream   fairchem's trainer (EquiformerV2ForcesTrainer), model and plain loss
    naive      NDeM on upstream's model, two forward passes per step
    joint      our trainer's NDeM on upstream's model: one forward pass over both views
    plain      our trainer, our EquiformerV2, coefficient 0
    ndem       our trainer, our EquiformerV2, coefficient 1; ndem@F: a second view for a fraction F
    ...        every other registered objective: on our EquiformerV2 if it needs two views; on
               upstream's if it encodes forces, as dens (Liao et al.) does

Any backbone other than EquiformerV2 is the same class in all arms.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fairchem_kit.training.config import ConfigError
from fairchem_kit.training.schedule import ScheduleError, uses_epochs
from ndem_ocp.bench.clock import Stopwatch, Timing, timed_calls
from ndem_ocp.bench.configs import set_key
from ndem_ocp.bench.errors import BenchError
from ndem_ocp.bench.naive import NaiveTrainer  # noqa: F401 (registers its model)
from ndem_ocp.bench.names import HOST_ARMS
from ndem_ocp.method import OBJECTIVES, SettingsError
from ndem_ocp.method.registry import objectives_with
from ndem_ocp.models import ModelConfigError
from ndem_ocp.models.dens import DENS_BACKBONES
from ndem_ocp.models.equiformer_names import to_ours, to_upstream
from ndem_ocp.models.graphs import edge_index_of
from ndem_ocp.testing import trainer_of

ARMS = (*HOST_ARMS, *OBJECTIVES)
# arms on our EquiformerV2
OURS = ("plain", *(name for name, each in OBJECTIVES.items() if each.model == "two_view"))
# the function that a backbone calls to find the edges of a batch
GRAPH_METHOD = "generate_graph"


def check_arms(arms: list[str]) -> None:
    """
    Raises:
        BenchError: for an arm that there is not.
    """
    for arm in arms:
        kind, _, fraction = arm.partition("@")
        if kind not in ARMS or (fraction and kind != "ndem"):
            raise BenchError(f"--arms {arm}: choose from {', '.join(ARMS)}, ndem@FRACTION.")


def arm_config(
    arm: str, config: dict[str, Any], data: Path, batch_size: int, ours: list[str] | None = None
) -> dict[str, Any]:
    """The configuration of an arm, including its trainer.

    Args:
        arm: one of :data:`ARMS`, or ``ndem@F``. config: from
            :func:`ndem_ocp.bench.configs.read_config`.
        data: folder or file of the training set.
        batch_size: structures per step.
        ours: ``key=value`` settings of the model section that only our EquiformerV2 has.

    Raises:
        BenchError: for an unknown arm.
    """
    check_arms([arm])
    kind, _, fraction = arm.partition("@")
    config = copy.deepcopy(config)
    config["trainer"] = _trainer(kind, config["optim"])
    config["model"] = (to_ours if kind in OURS else to_upstream)(config["model"])
    if kind in OURS:
        for setting in ours or ():
            set_key(config["model"], setting)
    settings = {k: v for k, v in config["task"]["ndem"].items() if k not in ("start", "ramp")}
    if kind == "upstream":
        config["task"] = {}
    else:
        config["task"] = {"ndem": _settings(kind, settings, fraction)}
    train = {k: v for k, v in config["dataset"]["train"].items() if k != "splits"}
    config["dataset"] = {"train": {**train, "src": str(data)}}
    config["logger"] = "tensorboard"  # not used: the trainers run in fairchem's debug mode
    config["optim"].update(
        batch_size=batch_size, eval_batch_size=batch_size, load_balancing=None, num_workers=0
    )
    # fairchem divides by the steps of the warmup, none with few structures; steps cost the same
    schedule = config["optim"].get("scheduler_params") or {}
    if "warmup_epochs" in schedule:
        schedule["warmup_epochs"] = max(schedule["warmup_epochs"], 1)
    return config


def _trainer(kind: str, optim: dict[str, Any]) -> str:
    if kind == "upstream":  # fairchem's trainer, for EquiformerV2's schedule or for fairchem's own
        return "equiformerv2_forces" if uses_epochs(optim) else "forces"
    return "ndem_ocp.bench.naive.NaiveTrainer" if kind == "naive" else "ndem_ocp.NDeMTrainer"


def _settings(kind: str, settings: dict[str, Any], fraction: str) -> dict[str, Any]:
    """``task.ndem`` of an arm: the settings of the configuration that apply to its objective."""
    objective = kind if kind in OBJECTIVES else "ndem"
    kept = {k: v for k, v in settings.items() if objective in objectives_with(k)}
    kept |= {"objective": objective, "coefficient": 0.0 if kind == "plain" else 1.0}
    if objective == "ndem":
        kept["fraction"] = float(fraction or 1.0)
    return kept


def possible_arms(arms: list[str], config: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(arms that this model can run, a sentence about each of the others)."""
    backbone = to_upstream(config["model"])["backbone"].get("model")
    told = [name for name, each in OBJECTIVES.items() if each.model == "encoded_forces"]
    impossible = [arm for arm in arms if arm in told and backbone not in DENS_BACKBONES]
    return [arm for arm in arms if arm not in impossible], [
        f"{arm} is left out: {backbone} does not take forces as input." for arm in impossible
    ]


@dataclass
class Arm:
    """One trainer, ready to take steps."""

    name: str
    trainer: Any
    device: torch.device
    edges: int = 0  # of the last batch, both views

    def evaluate(self, batch: Any, seed: int) -> float:
        """The loss of a batch as in validation: no noise, no dropout, no second view."""
        self.trainer.model.eval()
        torch.manual_seed(seed)  # EquiformerV2 draws a random rotation about each edge
        with torch.no_grad():
            out = self.trainer._forward(batch)
            return float(self.trainer._compute_loss(out, batch))

    def step(self, batch: Any, seed: int, watch: Stopwatch) -> Timing:
        """One training step as in fairchem's loop, without metrics and logs.

        Raises:
            BenchError: if the loss is not finite, because such a step is incomplete.
        """
        trainer = self.trainer
        trainer.step += 1
        trainer.model.train()
        torch.manual_seed(seed)
        watch.start()
        with self._phases(watch):
            with torch.autocast("cuda", enabled=trainer.scaler is not None):
                with watch.phase("forward"):
                    out = trainer._forward(batch)
                with watch.phase("loss"):
                    loss = trainer._compute_loss(out, batch)
            scaled = trainer.scaler.scale(loss) if trainer.scaler else loss
            with watch.phase("update"):
                trainer._backward(scaled)
        timing = watch.stop()
        if not bool(torch.isfinite(loss.detach())):
            raise BenchError(
                f"{self.name}: the loss of step {trainer.step} is not finite; check the data "
                "with `ndem data check`, or lower optim.lr_initial."
            )
        phases = dict(timing.phases_s)
        phases["optimizer"] = phases.pop("update") - phases["backward"]
        return timing._replace(phases_s=phases)

    @contextlib.contextmanager
    def _phases(self, watch: Stopwatch) -> Iterator[None]:
        backbone = getattr(self.trainer._unwrapped_model, "backbone", None)
        with (
            timed_calls(backbone, GRAPH_METHOD, watch, "graph", self._count_edges),
            timed_calls(torch.Tensor, "backward", watch, "backward"),
        ):
            self.edges = 0
            yield

    def _count_edges(self, graph: Any) -> None:
        self.edges += int(edge_index_of(graph).shape[1])


def build_arm(
    name: str, config: dict[str, Any], device: torch.device, amp: bool = False, seed: int = 0
) -> Arm:
    """The trainer of one arm, from the configuration of :func:`arm_config`.

    Raises:
        BenchError: if the configuration is refused.
    """
    with quiet(), tempfile.TemporaryDirectory(prefix="ndem-bench-") as folder:
        try:
            trainer = trainer_of(
                config, Path(folder), seed=seed, run_id="bench", cpu=device.type == "cpu", amp=amp,
                is_debug=True,
            )  # fmt: skip
        except (ConfigError, ModelConfigError, SettingsError, ScheduleError) as error:
            raise BenchError(f"{name}: {error}") from error
    return Arm(name, trainer, device)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide fairchem's messages on each model that it builds, such as the whole configuration."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def share_weights(arms: list[Arm]) -> None:
    """Give every arm the first one's weights; additional weights do not change.

    Raises:
        BenchError: if an arm lacks one of them or has another shape.
    """
    source = arms[0].trainer._unwrapped_model.state_dict()
    for arm in arms[1:]:
        try:
            found = arm.trainer._unwrapped_model.load_state_dict(source, strict=False)
        except RuntimeError as error:
            raise BenchError(
                f"{arm.name} and {arms[0].name} differ in their weights: {error}"
            ) from None
        if found.unexpected_keys:
            raise BenchError(f"{arm.name} has no {', '.join(found.unexpected_keys[:5])}.")
