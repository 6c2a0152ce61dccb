"""The status of a run: RUN_DIR/status/ID.json, written by rank 0 and the batch script.

A cluster without accounting forgets a job minutes after its end, and never knows its step or error.
This file has them.
"""

from __future__ import annotations

import math
import re
import time
import traceback
from pathlib import Path
from typing import Any

from fairchem_kit.atomic_files import read_json, write_atomically, write_json
from fairchem_kit.launch.errors import first_line

FOLDER = "status"
_NOTHING_YET = (1e9, -1.0)  # initial best value in fairchem's trainer


class Record:
    """The status of the run ``run_id`` in ``run_dir``.

    Keys: ``state`` (running, stopped, finished, failed, requeued), ``step``, ``total``,
    ``metric``, ``unit``, ``best``, ``error``, ``attempt``, ``job``, ``starts`` and ``updated``
    (Unix time).
    """

    def __init__(self, run_dir: str | Path, run_id: str) -> None:
        self.run_dir, self.run_id = Path(run_dir), run_id
        self.folder = self.run_dir / FOLDER
        self.path = self.folder / f"{run_id}.json"

    def read(self) -> dict[str, Any]:
        """The record, with the error of a rank that failed in this attempt; {} before the first
        start."""
        found = {k: v for k, v in (read_json(self.path) or {}).items() if _fits(k, v)}
        attempt = self.attempt()
        if attempt is not None:
            found["attempt"] = attempt
        error = self.error(attempt)
        if error is not None and found.get("state") != "finished":
            found.update(state="failed", error=error["error"])
        return found

    def update(self, **changes: Any) -> None:
        """Change some keys; None removes one."""
        found = {**(read_json(self.path) or {}), **changes, "updated": round(time.time(), 1)}
        write_json(self.path, {key: value for key, value in found.items() if value is not None})

    def begin(self, attempt: str) -> None:
        """Make ``attempt`` the current start of the run."""
        # A separate file, so that an older start that updates its step does not become current
        # again.
        write_atomically(self._attempt_file, attempt)

    def attempt(self) -> str | None:
        """The current start of the run, None before the first."""
        try:
            return self._attempt_file.read_text(encoding="utf-8") or None
        except OSError:
            return None

    @property
    def _attempt_file(self) -> Path:
        return self.folder / f"{self.run_id}.attempt"

    def fail(self, attempt: str, rank: int, error: BaseException) -> None:
        """Record a rank's error. Only the first of an attempt is kept, because it causes the
        others."""
        found = {
            "error": first_line(error),
            "rank": rank,
            "traceback": "".join(traceback.format_exception(error)),
        }
        write_json(self._error_file(attempt), found, keep_first=True)

    def error(self, attempt: str | None) -> dict[str, Any] | None:
        """The error recorded by :meth:`fail` for ``attempt``."""
        return read_json(self._error_file(attempt)) if attempt else None

    def _error_file(self, attempt: str) -> Path:
        return self.folder / f"{self.run_id}.error-{attempt}.json"

    def checkpoint(self) -> dict[str, Any]:
        """The entry on the newest checkpoint in the run's checkpoints.json, {} if there is none."""
        listed = read_json(self.run_dir / "checkpoints" / self.run_id / "checkpoints.json") or {}
        newest = listed.get("newest")
        return newest if isinstance(newest, dict) else {}

    def progress(self) -> float:
        """A number that changes when a new checkpoint is written: its step, or its time."""
        step = self.checkpoint().get("step")
        if step is not None:
            return float(step)
        files = (self.run_dir / "checkpoints" / self.run_id).glob("checkpoint*.pt")
        return max((file.stat().st_mtime for file in files), default=0.0)


def _fits(key: str, value: Any) -> bool:
    """Whether a value can be what this key's is; another is as good as absent."""
    if key in ("step", "total", "starts"):
        return isinstance(value, int)
    if key in ("best", "updated"):
        return isinstance(value, (int, float)) and math.isfinite(value)
    return key not in ("state", "metric", "unit", "error", "job") or isinstance(value, str)


def best_value(value: Any) -> float | None:
    """The best value of a metric so far, None before the first validation."""
    known = isinstance(value, (int, float)) and math.isfinite(value) and value not in _NOTHING_YET
    return float(value) if known else None


def records_below(folder: Path) -> list[Record]:
    """Every run in ``folder`` or one level below it, sorted by name."""
    found = [*folder.glob(f"{FOLDER}/*.json"), *folder.glob(f"*/{FOLDER}/*.json")]
    return [
        Record(path.parent.parent, path.stem)
        for path in sorted(found)
        if ".error-" not in path.name
    ]


def finished_id(run_dir: Path) -> str | None:
    """The id of a run in ``run_dir`` that has finished, None if there is none."""
    for path in sorted(run_dir.glob(f"{FOLDER}/*.json")):
        if ".error-" not in path.name and (read_json(path) or {}).get("state") == "finished":
            return path.stem
    return None


def safe_id(text: str) -> str:
    """``text`` as a run id: valid as a file name and as a W&B id."""
    return re.sub(r"[^A-Za-z0-9._,=+-]+", "-", text).strip("-.") or "run"
