"""Reading ``history.jsonl``, which :class:`fairchem_kit.history.logger.HistoryLogger` writes.

This is a separate module because it needs neither torch nor fairchem.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from fairchem_kit.errors import UserError

FILE_NAME = "history.jsonl"


class HistoryError(UserError, ValueError):
    """A history that cannot be read; the message names file and line."""


def read_history(path: str | Path, split: str | None = None) -> list[dict[str, Any]]:
    """Lines of a history in order, of one split or of all.

    Lines of steps that a resumed run repeated are left out, and so is an incomplete line left by a
    kill (the last one, or one before a resume); a broken line anywhere else is an error.

    Raises:
        FileNotFoundError: naming the file.
        HistoryError: naming file and line.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records: list[dict[str, Any]] = []
    torn = None
    for number, line in enumerate(lines, start=1):
        record = _parsed(line)
        if record is None:
            torn = torn or number
            continue
        if "resumed" in record:
            records = [earlier for earlier in records if not _superseded(earlier, record)]
            torn = None
            continue
        if torn is not None:
            raise HistoryError(f"{path}, line {torn}: not a record of a history")
        records.append(record)
    return [r for r in records if split is None or r["split"] == split]


def _parsed(line: str) -> dict[str, Any] | None:
    """The record in a line; None for any other text."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    if "resumed" in record:
        known = _is_number(record["resumed"]) and "evaluates" in record
    else:
        known = _is_number(record.get("step")) and isinstance(record.get("split"), str)
    return record if known else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def find_history(run_dir: str | Path) -> Path:
    """The newest history in a run directory.

    Raises:
        FileNotFoundError: if there is none; the message says what writes it.
    """
    found = sorted(Path(run_dir).rglob(FILE_NAME), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(
            f"No {FILE_NAME} in {run_dir}: set logger.name: ndem_ocp.HistoryLogger in the "
            "configuration of the run."
        )
    return found[-1]


def _superseded(record: dict[str, Any], resumed: dict[str, Any]) -> bool:
    """Whether the resumed run logs this again."""
    step = resumed["resumed"]
    again = resumed["evaluates"] and record["split"] != "train" and record["step"] == step
    return bool(again) or record["step"] > step
