"""A history that takes its time: a training that lasts long enough to be disturbed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from fairchem_kit.history.logger import HistoryLogger


class SlowHistory(HistoryLogger):
    """``history.jsonl`` with at least NDEM_TEST_STEP_S seconds between two steps.

    The file NDEM_TEST_PAUSING exists as soon as a pause has begun, if that is set.
    """

    _last = 0.0
    _step = -1

    def log(self, update_dict: dict[str, Any], step: int, split: str = "") -> None:
        pause = float(os.environ.get("NDEM_TEST_STEP_S", "0"))
        if step != self._step:
            rest = self._last + pause - time.monotonic() if self._last else 0.0
            if rest > 0 and "NDEM_TEST_PAUSING" in os.environ:
                Path(os.environ["NDEM_TEST_PAUSING"]).touch()
            time.sleep(max(0.0, rest))
            self._last, self._step = time.monotonic(), step
        super().log(update_dict, step, split)
