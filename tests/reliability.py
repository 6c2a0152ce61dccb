"""What the tests of failures saw: the rows of docs/reliability.md.

``NDEM_RELIABILITY=FILE pytest ...`` appends one line per fault to FILE; ``NDEM_SOAK=1`` makes the
loops as long as the page says (200 kills, 50 two-rank runs). ``NDEM_SOAK_MINUTES=30`` lets loops of
long repetitions begin no further one 30 minutes after the start; the page says how many there were.
The page is made from such a file by ndem_ocp/bench/pages/write.py.
"""

from __future__ import annotations

import json
import os
import time
from typing import TypeVar

T = TypeVar("T")
_END = time.monotonic() + 60 * float(os.environ.get("NDEM_SOAK_MINUTES", "inf"))


def soak(full: T, short: T) -> T:
    """``full`` repetitions, or cases, when asked for with NDEM_SOAK=1, else ``short``."""
    return full if os.environ.get("NDEM_SOAK") == "1" else short


def time_is_over() -> bool:
    """Whether a loop should begin no further repetition (NDEM_SOAK_MINUTES)."""
    return time.monotonic() > _END


def observed(area: str, fault: str, times: int, happened: str, lost: str) -> None:
    """Record one row, after the assertions that make it true.

    Args:
        area: checkpoints, ranks, slurm, data or configuration.
        fault: what was done to the run or its input.
        times: how often it was tried.
        happened: what the run did, in words and with measured counts.
        lost: what was lost ("nothing", "the steps since the last checkpoint: 3 on average").
    """
    path = os.environ.get("NDEM_RELIABILITY")
    if path:
        row = {"area": area, "fault": fault, "times": times, "happened": happened, "lost": lost}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
