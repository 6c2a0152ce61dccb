"""The trainer's component for ``task.init_from``: start from weights of a checkpoint."""

from __future__ import annotations

from fairchem_kit.training.component import Component
from fairchem_kit.training.config import trains
from ndem_ocp.pretrained.load import check_section, init_from
from ndem_ocp.pretrained.normalizers import take_normalizers


class InitFrom(Component):
    """Starts a new run from the weights (and normalizers) in ``task.init_from``."""

    task_keys = ("init_from",)

    def prepare(self, inference_only: bool) -> None:
        if inference_only or not trains():
            return
        if self.config["task"].get("init_from") is not None:
            check_section(self.config["task"]["init_from"])
        take_normalizers(self.config)

    def before_training(self) -> None:
        trainer = self.trainer
        if trainer.step > 0:  # a resumed run has its weights already
            return
        init_from(
            trainer._unwrapped_model,
            self.config["task"].get("init_from"),
            noise_gain=self.noise_gain(),
            ema=trainer.ema,
            config=self.config,
            normalizers=trainer.normalizers,
        )

    def noise_gain(self) -> float | None:
        """Output of the auxiliary head per Angstrom of noise; None without such a head."""
        return None
