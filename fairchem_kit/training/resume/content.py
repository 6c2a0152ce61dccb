"""What a checkpoint holds: fairchem's own keys, and what exact resume needs in addition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from fairchem_kit.training.resume.position import Position
from fairchem_kit.training.resume.restore import optimizer_names, trained_names

if TYPE_CHECKING:
    from fairchem_kit.training.trainer import Trainer

FORMAT = 1  # of what this package adds to fairchem's checkpoint


class FinishedStep(NamedTuple):
    """A finished step; between steps fairchem's loop has already advanced its counters."""

    step: int
    epoch: float

    @classmethod
    def now(cls, trainer: Trainer) -> FinishedStep:
        return cls(trainer.step, trainer.epoch)


def model_state(
    trainer: Trainer, at: FinishedStep, metrics: dict[str, Any] | None
) -> dict[str, Any]:
    """What evaluation needs, of the weights that the model has now."""
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
    """What the next step depends on and this rank knows by itself."""
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
    """The moving average with the names of its parameters; None without one."""
    if trainer.ema is None:
        return None
    # fairchem's copy of the weights during validation is not part of the run's state.
    names = trained_names(trainer._unwrapped_model)
    return {**trainer.ema.state_dict(), "collected_params": [], "names": names}


def best_state(trainer: Trainer, metrics: dict[str, Any] | None) -> dict[str, Any]:
    """The checkpoint of the best validation, whose weights are the moving average.

    With an average, its values have to be the model's while the state is used.
    """
    state = model_state(trainer, FinishedStep.now(trainer), metrics)
    if trainer.ema is None:
        return state
    # As "ema" the same tensors take no more room.
    trained = [p.detach() for p in trainer._unwrapped_model.parameters() if p.requires_grad]
    ema = {**(ema_state(trainer) or {}), "shadow_params": trained}
    return {**state, "ema": ema, "weights": "ema"}


def seed_of(trainer: Trainer) -> int | None:
    """The run's seed."""
    return trainer.config["cmd"]["seed"]
