"""Whether a split's metadata.npz agrees with its records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fairchem_kit.words import counted

from .findings import Finding, SplitReport
from .record_check import ERROR, WARNING

#: shard, first record and end of a run of records
Run = tuple[str, int, int]


def check_metadata(
    report: SplitReport, path: Path, runs: Sequence[Run], natoms: np.ndarray
) -> None:
    """Report where metadata.npz differs from the records.

    Args:
        report: of the split. path: metadata.npz. runs: of records, in order.
        natoms: (n,) of the records, -1 if unknown.
    """

    def error(record: int | None, message: str) -> None:
        report.add(Finding(str(path), record, ERROR, "metadata", message))

    if not path.is_file():
        message = "missing; fairchem's `load_balancing: atoms` needs it"
        report.add(Finding(str(path), None, WARNING, "metadata", message))
        return
    try:
        with np.load(path) as content:
            stored = np.asarray(content["natoms"])
    except Exception as problem:  # numpy raises many kinds for a damaged file
        error(None, f"cannot be read ({type(problem).__name__}: {problem}); write it again")
        return
    if not np.issubdtype(stored.dtype, np.integer):
        error(None, f"`natoms` is {stored.dtype}, fairchem needs integers")
    elif stored.shape != (len(natoms),):
        error(
            None,
            f"`natoms` has shape {stored.shape}, but the data have "
            f"{counted(len(natoms), 'record')}",
        )
    else:
        wrong = np.flatnonzero((stored != natoms) & (natoms >= 0))
        if len(wrong):
            first = int(wrong[0])
            shard = _shard_of(first, runs)
            error(first, f"natoms {stored[first]}, {shard} says {natoms[first]} "
                  f"({counted(len(wrong), 'record')} differ)")  # fmt: skip


def _shard_of(position: int, runs: Sequence[Run]) -> str:
    """``file: record number`` of a position in the split."""
    for path, start, stop in runs:
        if position < stop - start:
            return f"{path}: record {start + position}"
        position -= stop - start
    return "no record"
