"""Training under fairchem: the trainer, its losses, schedules and configuration checks."""

from ndem_ocp.training.losses import SquaredL2Loss
from ndem_ocp.training.trainer import NDeMTrainer

__all__ = ["NDeMTrainer", "SquaredL2Loss"]
