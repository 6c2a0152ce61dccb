"""The NDeM trainer: the resumable trainer of ``fairchem_kit.training`` with the auxiliary task.

All that NDeM adds to a training step is in auxiliary_task.py.
"""

from __future__ import annotations

from fairchem.core.common.registry import registry

from fairchem_kit.training.config import Keys
from fairchem_kit.training.normalizers import Normalizers
from fairchem_kit.training.trainer import TRAINING, Trainer
from ndem_ocp.pretrained.component import InitFrom
from ndem_ocp.trainer.auxiliary_task import AuxiliaryTask


class Start(InitFrom):
    """``task.init_from``, which may bring a denoising head for the auxiliary one."""

    def noise_gain(self) -> float:
        return self.trainer.ndem.noise_gain()


@registry.register_trainer("ndem")
class NDeMTrainer(Trainer):
    """Trains an energy + force model with NDeM; ``task.ndem`` holds the settings.

    ``task.ndem.coefficient: 0`` is fairchem's plain trainer, bit for bit, and so are all steps
    before ``task.ndem.start``. In validation, prediction and relaxation the model is the plain
    model at the plain model's cost.
    """

    kinds = (Keys, Start, Normalizers, AuxiliaryTask, *TRAINING)
    full_name = "ndem_ocp.NDeMTrainer"

    ndem: AuxiliaryTask
