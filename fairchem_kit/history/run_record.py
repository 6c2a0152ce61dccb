"""``run.json`` next to a run's history: its configuration, and place and time of each start.

With it, a report does not need the run's checkpoint, which may be large or deleted.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairchem_kit.atomic_files import read_json, write_atomically
from fairchem_kit.history.validation_sets import validation_sets, with_contents
from fairchem_kit.provenance import provenance

FILE_NAME = "run.json"


def write_run_record(folder: Path, config: Mapping[str, Any]) -> None:
    """Record this start of the run with log directory ``folder``.

    Keys of the file: ``config`` as of this start; ``starts``, one mapping each with ``version``,
    ``commit``, ``command``, ``date`` (UTC), ``hardware``, ``ranks`` and ``validation_sets`` (path,
    selection and content of each split); ``summary``, values that fairchem logs once
    (``num_params``).
    """
    from fairchem_kit import __version__

    root = Path(__file__).resolve().parents[2]
    start = {"version": __version__, **provenance(root)}
    if not (root / ".git").exists():  # an installed package: no commit
        start["commit"] = "unknown"
    start["ranks"] = int(os.environ.get("WORLD_SIZE") or 1)
    start["validation_sets"] = with_contents(validation_sets(config))
    before = read_run_record(folder)
    _write(folder, {**before, "config": config, "starts": [*before.get("starts", []), start]})


def add_summary(folder: Path, values: Mapping[str, Any]) -> None:
    """Record values of the run as a whole."""
    record = read_run_record(folder)
    _write(folder, {**record, "summary": {**record.get("summary", {}), **values}})


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # not a reason to stop training
        write_atomically(folder / FILE_NAME, json.dumps(record, indent=1, default=str) + "\n")


def read_run_record(folder: Path) -> dict[str, Any]:
    """The record in a log directory, {} if there is none; parts of the wrong type are left out."""
    found = read_json(folder / FILE_NAME) or {}
    starts = found.get("starts")
    if isinstance(starts, list):
        found["starts"] = [start for start in starts if isinstance(start, dict)]
    kinds = {"config": dict, "summary": dict, "starts": list}
    return {k: v for k, v in found.items() if isinstance(v, kinds.get(k, object))}
