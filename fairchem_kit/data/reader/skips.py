"""Skipped records: which, why, their replacements, and the limit on their number."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from pathlib import Path

from .errors import RecordError, TooManyBadRecords


class Skips:
    """The bad records found by this process. Each is logged and counted once.

    Attributes:
        standins: position of a bad record -> position of its replacement. kinds: number of bad
            records of each kind.
    """

    def __init__(self, limit: int, log: str | None) -> None:
        self.limit = limit
        self.log = log
        self.standins: dict[int, int] = {}
        self.kinds: Counter[str] = Counter()
        self._known: set[int] = set()

    def add(self, position: int, error: RecordError) -> None:
        """Count a bad record.

        Raises:
            TooManyBadRecords: more than allowed.
        """
        if position in self._known:
            return
        self._known.add(position)
        self.kinds[str(error.kind)] += 1
        logging.warning(f"skipped: {error.file}: record {error.key}: {error.reason}")
        self._write(position, error)
        if len(self._known) > self.limit:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
            raise TooManyBadRecords(
                f"{error.file}: record {error.key}: {error.reason}. This is bad record number "
                f"{len(self._known)} of this process ({kinds}), and dataset.max_bad_records is "
                f"{self.limit}: look at the data with `ndem data check` before raising it."
            )

    def note(self, file: str, problem: str) -> None:
        """Log what is wrong with the keys of a file. Missing records are counted when they are
        read."""
        logging.warning(f"{file}: {problem}")

    def _write(self, position: int, error: RecordError) -> None:
        if self.log is None:
            return
        line = {
            "file": error.file,
            "record": error.key,
            "position": position,
            "kind": error.kind,
            "reason": error.reason,
            "rank": int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))),
            "process": os.getpid(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        path = Path(self.log)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = (json.dumps(line) + "\n").encode()
        # one write in append mode, so that lines of several workers do not mix
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)
