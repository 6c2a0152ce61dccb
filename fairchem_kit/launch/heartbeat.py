"""Rank 0 records the run's progress regularly, and exits if another start has taken over."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
from types import TracebackType
from typing import Any

from fairchem_kit.launch.exit_codes import LOST_RANK
from fairchem_kit.launch.record import Record, best_value
from fairchem_kit.units.metrics import unit_of

EVERY_S = float(os.environ.get("NDEM_HEARTBEAT_S", "15"))


class Heartbeat:
    """A thread that updates the record of a run during training.

    A failed node may come back with the old ranks still running next to the new ones. The record
    says which start is current: an older one exits.
    """

    def __init__(self, record: Record, trainer: Any, attempt: str, every_s: float = EVERY_S):
        self.record, self.trainer, self.attempt, self.every_s = record, trainer, attempt, every_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="ndem-heartbeat")

    def __enter__(self) -> Heartbeat:
        self.record.update(**self.now())
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self.record.update(**self.now())

    def now(self) -> dict[str, Any]:
        """Step, total steps, and the best value of the primary metric so far, with its unit."""
        trainer = self.trainer
        found: dict[str, Any] = {"step": int(trainer.step)}
        if trainer.train_loader is not None:
            epochs = trainer.config["optim"]["max_epochs"]
            found["total"] = math.ceil(epochs * len(trainer.train_loader))
        metrics = trainer.config.get("evaluation_metrics") or {}
        found["metric"] = trainer.primary_metric or metrics.get("primary_metric")
        found["unit"] = unit_of(found["metric"] or "", trainer.config.get("outputs") or {}) or None
        found["best"] = best_value(trainer.best_val_metric)
        return found

    def _beat(self) -> None:
        while not self._end.wait(self.every_s):
            try:
                attempt = self.record.attempt()
                if attempt not in (None, self.attempt):
                    logging.error(f"{attempt} has taken over this run: leaving {self.attempt}.")
                    os._exit(LOST_RANK)
                self.record.update(**self.now())
            except OSError as error:  # a full or slow disk must not end training
                logging.warning(f"{self.record.path} could not be written: {error}")
