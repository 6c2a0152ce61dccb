"""``task.early_stopping``: end a run when its validation error has stopped improving.

    task:
      early_stopping: 10      # validations in a row without improvement; null: never

A validation is better by the same criterion as for the best checkpoint:
``evaluation_metrics.primary_metric`` on ``dataset.val``. All ranks have the same metrics and
therefore stop together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairchem_kit.training.checks.messages import ConfigError
from fairchem_kit.training.component import Component

KEY = "early_stopping"


def patience_of(task: Mapping[str, Any]) -> int | None:
    """``task.early_stopping``: number of validations in a row without improvement; None: unlimited.

    Raises:
        ConfigError: if the value is not a whole number above 0 or null.
    """
    value = task.get(KEY)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ConfigError(f"task.{KEY} = {value!r}: must be a number of validations, or null.")
    if value is not None and value < 1:
        raise ConfigError(f"task.{KEY} = {value}: must be at least 1, or null to train to the end.")
    return value


class EarlyStopping(Component):
    """Counts validations since the best one, and ends the run after too many of them."""

    name = "early"
    task_keys = (KEY,)

    def read(self) -> None:
        self.patience = patience_of(self.config["task"])
        self.since = 0

    def best_updated(self, better: bool) -> None:
        self.since = 0 if better else self.since + 1

    def finished(self) -> str | None:
        if self.patience is None or self.since < self.patience:
            return None
        return f"No better validation in the last {self.since} (task.{KEY})"

    def state(self) -> dict[str, Any]:
        return {"validations_since_best": self.since}

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        self.since = int(checkpoint.get("validations_since_best") or 0)
