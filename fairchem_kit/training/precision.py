"""Faster float32 matrix products (TF32 on CUDA), let in only where their error is small.

task:
  matmul_precision: high     # highest (default): float32; high: TF32; medium: bfloat16
  matmul_tolerance: 0.01     # largest relative error of the forces that is let in
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
    """Sets the precision before the first step, if the model bears it."""

    task_keys = ("matmul_precision", "matmul_tolerance")

    def read(self) -> None:
        self.precision, self.tolerance = read_precision(self.config["task"])

    def before_training(self) -> None:
        if self.precision != "highest":
            set_precision(self.precision, self.tolerance, self._some_forces)

    @torch.no_grad()
    def _some_forces(self) -> Tensor:
        """Forces of the first structures of the training set, without a trace in the run."""
        trainer = self.trainer
        few = range(min(4, len(trainer.train_dataset)))
        batch = trainer.collater([trainer.train_dataset[index] for index in few])
        training = trainer.model.training
        trainer.model.eval()
        with torch.random.fork_rng():
            torch.manual_seed(0)  # frames of edges
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
        raise ConfigError(f"task.matmul_precision = {precision!r}: {', '.join(PRECISIONS)}.")
    tolerance = task.get("matmul_tolerance", TOLERANCE)
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not tolerance > 0:
        raise ConfigError(f"task.matmul_tolerance = {tolerance!r}: a number above 0.")
    return precision, float(tolerance)


def set_precision(precision: str, tolerance: float, forces: Callable[[], Tensor]) -> float:
    """Compute float32 products of this process with ``precision`` from now on.

    Args:
        precision: of :data:`PRECISIONS`.
        tolerance: largest relative error (2-norm) of the forces.
        forces: computes forces of some structures, the same at each call.

    Returns:
        The relative error that was found.

    Raises:
        ConfigError: if it is larger; the precision is then as it was.
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
            "higher precision, or a larger tolerance if you can bear that."
        )
    logging.info(f"{said} (relative, first structures of the training set).")
    return error
