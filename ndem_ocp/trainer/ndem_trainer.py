"""The NDeM trainer: the resumable trainer of ``fairchem_kit.training`` plus the auxiliary task.

Everything that NDeM adds to a training step is in auxiliary_task.py.
"""

from __future__ import annotations

from fairchem.core.common.registry import registry

from fairchem_kit.training.config import Keys
from fairchem_kit.training.normalizers import Normalizers
from fairchem_kit.training.trainer import TRAINING, Trainer
from ndem_ocp.pretrained.component import InitFrom
from ndem_ocp.trainer.auxiliary_task import AuxiliaryTask


class InitFromWithNoiseHead(InitFrom):
    """``task.init_from``, which can also load a pre-trained noise head into the auxiliary head."""

    def noise_gain(self) -> float:
        return self.trainer.ndem.noise_gain()


@registry.register_trainer("ndem")
class NDeMTrainer(Trainer):
    """Trains an energy + force model with NDeM; ``task.ndem`` holds the settings.

    With ``task.ndem.coefficient: 0``, and in all steps before ``task.ndem.start``, it trains
    exactly as fairchem's plain trainer, bit for bit. In validation, prediction and relaxation the
    model is the plain model, at the same cost.
    """

    kinds = (Keys, InitFromWithNoiseHead, Normalizers, AuxiliaryTask, *TRAINING)
    full_name = "ndem_ocp.NDeMTrainer"

    ndem: AuxiliaryTask
