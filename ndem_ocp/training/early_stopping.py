"""A run that ends when its validation has not improved for a while: ``task.early_stopping``.

    task:
      early_stopping: 10      # validations in a row without a better one; null: never

What counts as better is what makes a best checkpoint: ``evaluation_metrics.primary_metric`` on
``dataset.val``. All ranks have the same metrics, and so come to the same answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ndem_ocp.training.config import ConfigError

KEY = "early_stopping"


class EarlyStopping:
    """Counts validations since the best one.

    Attributes:
        patience: how many in a row may be no better; None: any number. since: so far.
    """

    def __init__(self, patience: int | None = None) -> None:
        self.patience, self.since = patience, 0

    @classmethod
    def from_task(cls, task: Mapping[str, Any]) -> EarlyStopping:
        """Raises ConfigError for a value that is no number of validations."""
        value = task.get(KEY)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise ConfigError(f"task.{KEY} = {value!r}: a whole number of validations, or null.")
        if value is not None and value < 1:
            raise ConfigError(f"task.{KEY} = {value}: at least 1, or null to train to the end.")
        return cls(value)

    def judged(self, better: bool) -> None:
        """Note a validation."""
        self.since = 0 if better else self.since + 1

    @property
    def exhausted(self) -> bool:
        return self.patience is not None and self.since >= self.patience
