"""``history.jsonl``: what fairchem's training unit logs to W&B, and additional quantities."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairchem_kit.history.file import FILE_NAME

TRAIN, LOSS = "train/", "train/loss"


class StepLog:
    """Replaces fairchem's ``unit.logger``: adds quantities, writes a file, and calls W&B's logger.

    A line of the file has ``step``, ``split``, ``time_s`` and the logged quantities, in the same
    format as on fairchem 1.10 (:class:`fairchem_kit.history.logger.HistoryLogger`), so that
    :func:`read_history` can read both.

    Args:
        folder: where to write the file; None: no file.
        inner: fairchem's W&B logger, or None.
        more: returns additional quantities of a step, given its total loss.
    """

    def __init__(
        self, folder: str | None, inner: Any, more: Callable[[float], dict[str, float]]
    ) -> None:
        self._inner, self._more = inner, more
        self._path = None if folder is None else Path(folder) / FILE_NAME
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        self._start, self._step = time.monotonic(), 0
        self.last: dict[str, float] = {}

    def log(self, values: dict[str, Any], step: int | None = None, **rest: Any) -> None:
        if LOSS in values:
            more = {TRAIN + name: value for name, value in self._more(values[LOSS]).items()}
            values, self.last = {**values, **more}, more
        if step is not None:
            self._step = step
        split = "train" if LOSS in values else "val"
        prefix = f"{split}/"
        numbers = {
            name.removeprefix(prefix): float(value)
            for name, value in values.items()
            if name not in (f"{prefix}step",)
        }
        elapsed = round(time.monotonic() - self._start, 3)
        self._append({"step": self._step, "split": split, "time_s": elapsed, **numbers})
        if self._inner is not None:
            self._inner.log(values, **({} if step is None else {"step": step}), **rest)

    def resumed(self, step: int) -> None:
        """Mark in the file that a run resumes from ``step`` and that later lines are obsolete."""
        self._append({"resumed": step - 1, "evaluates": False})

    def log_summary(self, values: dict[str, Any]) -> None:
        if self._inner is not None:
            self._inner.log_summary(values)

    def _append(self, record: dict[str, Any]) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
