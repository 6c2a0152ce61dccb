"""The content of a checkpoint: fairchem's own keys, and what an exact resume also needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from fairchem_kit.training.resume.position import Position
from fairchem_kit.training.resume.restore import optimizer_names, trained_names

if TYPE_CHECKING:
    from fairchem_kit.training.trainer import Trainer

FORMAT = 1  # version of what this package adds to fairchem's checkpoint


class FinishedStep(NamedTuple):
    """Counters of a finished step. Between steps fairchem's loop has advanced its own already."""

    step: int
    epoch: float

    @classmethod
    def now(cls, trainer: Trainer) -> FinishedStep:
        return cls(trainer.step, trainer.epoch)


def model_state(
    trainer: Trainer, at: FinishedStep, metrics: dict[str, Any] | None
) -> dict[str, Any]:
    """Everything that evaluation needs, with the current weights of the model."""
    normalizers, references = trainer.normalizers, trainer.elementrefs
    return {
        "state_dict": trainer.model.state_dict(),
        "normalizers": {key: value.state_dict() for key, value in normalizers.items()},
        "elementrefs": {key: value.state_dict() for key, value in references.items()},
        "config": trainer.config,
        "val_metrics": metrics,
        "amp": trainer.scaler.state_dict() if trainer.scaler else None,
        "epoch": at.epoch,
        "step": at.step,
    }


def training_state(trainer: Trainer, at: FinishedStep) -> dict[str, Any]:
    """Everything else on which the next step depends, as far as this rank knows it."""
    schedule = trainer.scheduler
    state = {
        "optimizer": trainer.optimizer.state_dict(),
        "optimizer_names": optimizer_names(trainer._unwrapped_model, trainer.optimizer),
        "scheduler": None if schedule.scheduler_type == "Null" else schedule.scheduler.state_dict(),
        "ema": ema_state(trainer),
        "best_val_metric": trainer.best_val_metric,
        "primary_metric": trainer.primary_metric_name(),
        "ndem_checkpoint": FORMAT,
        "position": Position.of(at.step, trainer.train_loader, seed_of(trainer)).as_dict(),
    }
    for component in trainer.components:
        state |= component.state()
    return state


def ema_state(trainer: Trainer) -> dict[str, Any] | None:
    """The moving average with the names of its parameters; None if there is none."""
    if trainer.ema is None:
        return None
    # without fairchem's copy of the weights, which only exists during validation
    names = trained_names(trainer._unwrapped_model)
    return {**trainer.ema.state_dict(), "collected_params": [], "names": names}


def best_state(trainer: Trainer, metrics: dict[str, Any] | None) -> dict[str, Any]:
    """The checkpoint of the best validation, whose weights are the moving average.

    If there is an average, it must be copied into the model before, and until the state is written.
    """
    state = model_state(trainer, FinishedStep.now(trainer), metrics)
    if trainer.ema is None:
        return state
    # "ema" refers to the same tensors, which are stored only once
    trained = [p.detach() for p in trainer._unwrapped_model.parameters() if p.requires_grad]
    ema = {**(ema_state(trainer) or {}), "shadow_params": trained}
    return {**state, "ema": ema, "weights": "ema"}


def seed_of(trainer: Trainer) -> int | None:
    """The run's seed."""
    return trainer.config["cmd"]["seed"]
