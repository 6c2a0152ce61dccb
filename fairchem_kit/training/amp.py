"""The type of mixed precision: with ``--amp`` fairchem computes in float16, here in bfloat16 too.

task:
  amp_dtype: bfloat16   # float16 (default): fairchem's, with a scaler of the loss

bfloat16 has the range of float32, so its gradients need no scaler, and no step is left out while
one looks for its scale. Both are CUDA's: on the CPU ``--amp`` does nothing, as in fairchem.
"""

from __future__ import annotations

import logging

import torch

from fairchem_kit.training.checks.messages import ConfigError
from fairchem_kit.training.component import Component
from fairchem_kit.training.config import trains

TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
KEY = "amp_dtype"


class MixedPrecision(Component):
    """``task.amp_dtype``, for every forward pass of the trainer that fairchem casts."""

    task_keys = (KEY,)

    def read(self) -> None:
        trainer, name = self.trainer, self.config["task"].get(KEY, "float16")
        if name not in TYPES:
            raise ConfigError(f"task.{KEY} = {name!r}: {' or '.join(TYPES)}.")
        if not self.config.get("amp") or trainer.device.type != "cuda":
            return
        if name == "bfloat16":
            _check_card(trainer.device)
            # Present, so that fairchem casts; disabled, so that it scales nothing.
            trainer.scaler = torch.GradScaler("cuda", enabled=False)
        # fairchem's torch.autocast("cuda") takes the type that is set for the process.
        torch.set_autocast_dtype("cuda", TYPES[name])

    def prepare(self, inference_only: bool) -> None:
        if inference_only or KEY not in self.config["task"] or not trains():
            return
        if self.trainer.device.type != "cuda":
            logging.warning(f"task.{KEY} is not used: mixed precision needs a GPU.")
        elif not self.config.get("amp"):
            raise ConfigError(
                f"task.{KEY} is the type of mixed precision, which this run does not use: add "
                f"--amp to the command, or remove task.{KEY} to compute in float32."
            )


def _check_card(device: torch.device) -> None:
    """NVIDIA's cards before Ampere compute bfloat16 by conversion, more slowly than float32."""
    card = torch.cuda.get_device_properties(device)
    if torch.version.hip is None and card.major < 8:
        raise ConfigError(
            f"task.{KEY} = 'bfloat16' needs a GPU of compute capability 8.0 or more (A100 and "
            f"newer); this one has {card.major}.{card.minor}. Use float16."
        )
