"""Faster float32 matrix products (TF32 on CUDA), allowed only if their error is small.

task:
  matmul_precision: high     # highest (default): float32; high: TF32; medium: bfloat16
  matmul_tolerance: 0.01     # largest relative error of the forces
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from fairchem.core.trainers import OCPTrainer
from torch import Tensor

from fairchem_kit.training.checks.messages import ConfigError
from fairchem_kit.training.component import Component

PRECISIONS = ("highest", "high", "medium")
TOLERANCE = 0.01


class Precision(Component):
    """Sets the precision before the first step, if the error of the forces is acceptable."""

    task_keys = ("matmul_precision", "matmul_tolerance")

    def read(self) -> None:
        self.precision, self.tolerance = read_precision(self.config["task"])

    def before_training(self) -> None:
        if self.precision != "highest":
            set_precision(self.precision, self.tolerance, self._some_forces)

    @torch.no_grad()
    def _some_forces(self) -> Tensor:
        """Forces on the first structures of the training set; the run itself is not affected."""
        trainer = self.trainer
        few = range(min(4, len(trainer.train_dataset)))
        batch = trainer.collater([trainer.train_dataset[index] for index in few])
        training = trainer.model.training
        trainer.model.eval()
        with torch.random.fork_rng():
            torch.manual_seed(0)  # for the random frames of edges
            forces = OCPTrainer._forward(trainer, batch.to(trainer.device))["forces"]
        trainer.model.train(training)
        return forces


def read_precision(task: Mapping[str, Any]) -> tuple[str, float]:
    """``task.matmul_precision`` and ``task.matmul_tolerance``.

    Raises:
        ConfigError: naming the key.
    """
    precision = task.get("matmul_precision", "highest")
    if precision not in PRECISIONS:
        raise ConfigError(
            f"task.matmul_precision = {precision!r}: must be one of {', '.join(PRECISIONS)}."
        )
    tolerance = task.get("matmul_tolerance", TOLERANCE)
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not tolerance > 0:
        raise ConfigError(f"task.matmul_tolerance = {tolerance!r}: must be a number above 0.")
    return precision, float(tolerance)


def set_precision(precision: str, tolerance: float, forces: Callable[[], Tensor]) -> float:
    """Set the precision of float32 matrix products in this process.

    Args:
        precision: one of :data:`PRECISIONS`.
        tolerance: largest relative error (2-norm) of the forces.
        forces: computes the forces on some structures, the same at each call.

    Returns:
        The relative error of the forces.

    Raises:
        ConfigError: if the error is larger than the tolerance; the precision is then unchanged.
    """
    exact = forces()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    error = float((forces() - exact).norm() / exact.norm().clamp(min=1e-12))
    said = f"task.matmul_precision: {precision} changes the forces of this model by {error:.1e}"
    if not error <= tolerance:
        torch.set_float32_matmul_precision(before)
        raise ConfigError(
            f"{said} relative to float32, more than task.matmul_tolerance = {tolerance:g}. Use a "
            "higher precision, or a larger tolerance if this error is acceptable."
        )
    logging.info(f"{said} (relative error on the first structures of the training set).")
    return error
