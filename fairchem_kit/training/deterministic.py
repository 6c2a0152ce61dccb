"""Sums in a fixed order on CUDA, so that a resumed run can be the uninterrupted one to the bit.

task:
  deterministic: True   # False (default)

On the CPU runs are exact without it. docs/reliability.md says what it covers on CUDA.
"""

from __future__ import annotations

import os

import torch

from fairchem_kit.training.checks.messages import ConfigError
from fairchem_kit.training.component import Component

KEY = "deterministic"


class Deterministic(Component):
    """Tells torch, for this process, to use its deterministic algorithms."""

    task_keys = (KEY,)

    def read(self) -> None:
        wanted = self.config["task"].get(KEY, False)
        if not isinstance(wanted, bool):
            raise ConfigError(f"task.{KEY} = {wanted!r}: True or False.")
        if wanted:
            # cuBLAS reads this when it is first used, which in a trainer is later than now.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            # An operation without such an algorithm still runs, and torch warns about it.
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # for finding mistakes
