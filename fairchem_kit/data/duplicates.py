"""Structures that are more than once in a data set: within a split, and in two splits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.words import counted

from .fields import as_array
from .findings import Finding, SplitReport
from .record_check import WARNING

_RESOLUTION = 1e-4  # A: a text file keeps fewer digits than a trajectory
UNKNOWN = 0  # the key of a record that cannot be used


def structure_key(fields: dict[str, Any]) -> int:
    """A 63-bit number that records of the same elements, positions and cell share."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(as_array(fields["atomic_numbers"]).astype(np.int64).tobytes())
    for name in ("pos", "cell"):
        if fields.get(name) is not None:
            steps = np.round(as_array(fields[name]).astype(np.float64) / _RESOLUTION) + 0.0
            digest.update(steps.tobytes())
    return int.from_bytes(digest.digest(), "little") >> 1 or 1


@dataclass(frozen=True)
class Structures:
    """The keys of the records of a split.

    Attributes:
        keys: (records,) int64, ``UNKNOWN`` for records that cannot be used.
        runs: file, first record and end of each run of records, in the order of ``keys``.
    """

    keys: np.ndarray
    runs: list[tuple[str, int, int]]

    def place(self, index: int) -> str:
        """File and record of a key, for messages."""
        for path, start, stop in self.runs:
            if index < stop - start:
                return f"{path}: record {start + index}"
            index -= stop - start
        raise IndexError(index)


def check_duplicates(reports: list[SplitReport], structures: list[Structures]) -> None:
    """Add warnings about structures that are more than once in a split, or in two splits.

    A pair of splits is reported for the one that is not ``train``.
    """
    order = sorted(range(len(reports)), key=lambda n: Path(reports[n].path).name != "train")
    for place, number in enumerate(order):
        report, own = reports[number], structures[number]
        known, first, counts = np.unique(own.keys, return_index=True, return_counts=True)
        again = (known != UNKNOWN) & (counts > 1)
        if again.any():
            one = first[again].min()
            other = np.flatnonzero(own.keys == own.keys[one])[1]
            _warn(
                report,
                f"{counted(int((counts[again] - 1).sum()), 'record')} with the same atoms, "
                f"positions and cell as another one; the first is {own.place(other)}, like "
                f"{own.place(one)}",
            )
        for earlier in order[:place]:
            _check_pair(report, own, reports[earlier], structures[earlier])


def _check_pair(
    report: SplitReport, own: Structures, earlier: SplitReport, theirs: Structures
) -> None:
    shared = np.flatnonzero(np.isin(own.keys, theirs.keys[theirs.keys != UNKNOWN]))
    if not len(shared):
        return
    twin = np.flatnonzero(theirs.keys == own.keys[shared[0]])[0]
    _warn(
        report,
        f"{counted(len(shared), 'record')} with the same atoms, positions and cell as one in "
        f"{earlier.path}: errors on them say too little; the first is {own.place(shared[0])}, like "
        f"{theirs.place(twin)}",
    )


def _warn(report: SplitReport, message: str) -> None:
    report.add(Finding(report.path, None, WARNING, "duplicate", message))
