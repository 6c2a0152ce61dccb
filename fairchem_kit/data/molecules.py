"""Molecules in memory, and checks of them (``ndem data md17``, ``ndem data qm9``)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.words import counted

from .errors import DataError
from .labels import LARGEST
from .stream import Record

#: A; atoms that are closer overlap
MIN_DISTANCE = 0.3
_CHUNK = 2000


@dataclass(frozen=True)
class Molecules:
    """M molecules with A atoms in total, as flat arrays.

    Attributes:
        numbers: (A,) atomic numbers. positions: (A, 3) A. offsets: (M + 1,) int64, the atoms of
            molecule i are ``offsets[i]`` to ``offsets[i + 1] - 1``.
        sid, fid: (M,) int64, numbers of the system and of the frame in its source.
        labels: name of a field of the record -> (M,) float64, one number per molecule.
        forces: (A, 3), or None.
        file: (M,) index into ``files`` of each molecule's file, and row: (M,) its number there; for
            messages. files: the names.
        keys: names of the positions, atomic numbers and forces in these files; for messages.
        double: labels are written as float64 tensors; fairchem converts plain numbers to float32.
    """

    numbers: np.ndarray
    positions: np.ndarray
    offsets: np.ndarray
    sid: np.ndarray
    fid: np.ndarray
    labels: Mapping[str, np.ndarray]
    forces: np.ndarray | None
    file: np.ndarray
    row: np.ndarray
    files: tuple[str, ...]
    keys: Mapping[str, str] = field(default_factory=dict)
    double: bool = False

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def natoms(self) -> np.ndarray:
        """(M,) int64."""
        return np.diff(self.offsets)

    def elements(self, rows: np.ndarray) -> list[int]:
        """Atomic numbers in some molecules, sorted."""
        return np.unique(self.numbers[self._atoms(rows)]).astype(int).tolist()

    def _atoms(self, rows: np.ndarray) -> np.ndarray:
        """Indices of the atoms of some molecules."""
        natoms = self.natoms[rows]
        ends = np.cumsum(natoms, dtype=np.int64)
        return np.repeat(self.offsets[rows] - ends + natoms, natoms) + np.arange(natoms.sum())

    def part(self, rows: np.ndarray) -> Molecules:
        """Copies of some molecules, in the given order."""
        atoms = self._atoms(rows)
        return replace(
            self,
            numbers=self.numbers[atoms],
            positions=self.positions[atoms],
            offsets=np.concatenate([[0], np.cumsum(self.natoms[rows])]).astype(np.int64),
            sid=self.sid[rows],
            fid=self.fid[rows],
            labels={name: values[rows] for name, values in self.labels.items()},
            forces=None if self.forces is None else self.forces[atoms],
            file=self.file[rows],
            row=self.row[rows],
        )

    def __iter__(self) -> Iterator[Record]:
        """The records: not periodic, no fixed atom, and all of it adsorbate (tag 2)."""
        for row, (start, stop) in enumerate(zip(self.offsets[:-1], self.offsets[1:])):
            atoms, natoms = slice(start, stop), stop - start
            yield Record(
                numbers=self.numbers[atoms].astype(np.int64),
                positions=self.positions[atoms],
                cell=np.zeros((3, 3)),
                pbc=np.zeros(3, dtype=bool),
                fixed=np.zeros(natoms, dtype=np.int64),
                tags=np.full(natoms, 2),
                sid=self.sid[row],
                fid=self.fid[row],
                labels={name: values[row] for name, values in self.labels.items()},
                vectors={} if self.forces is None else {"force": self.forces[atoms]},
                double=self.double,
            )

    def where(self, molecule: int, key: str) -> str:
        """``file: `key`: record number`` of one molecule, for a message."""
        name = self.keys.get(key, key)
        return f"{self.files[self.file[molecule]]}: `{name}`: record {self.row[molecule]}"


def check_molecules(molecules: Molecules, rows: np.ndarray, advice: str) -> None:
    """Refuse molecules with numbers that a record cannot hold, impossible elements or overlapping
    atoms.

    Args:
        molecules: all molecules. rows: those to check. advice: what to do, the end of the messages.

    Raises:
        DataError: naming file, key and record of the first, and their number.
    """
    rows = np.sort(rows)
    for name, values in molecules.labels.items():
        _refuse(molecules, rows, _impossible(values[rows]), name, _IMPOSSIBLE, advice)
    atoms = {"positions": molecules.positions, "forces": molecules.forces}
    for name, values in atoms.items():
        if values is not None:
            bad = _any_atom(molecules, _impossible(values).any(axis=1))[rows]
            _refuse(molecules, rows, bad, name, _IMPOSSIBLE, advice)
    bad = _any_atom(molecules, (molecules.numbers < 1) | (molecules.numbers > 118))[rows]
    _refuse(molecules, rows, bad, "numbers", "an atomic number outside 1 to 118", advice)
    nearest = smallest_distances(molecules, rows)
    found = f"atoms {nearest.min(initial=math.inf):.3f} A apart, below {MIN_DISTANCE} A"
    _refuse(molecules, rows, nearest < MIN_DISTANCE, "positions", found, advice, nearest)


_IMPOSSIBLE = "NaN or infinite in float32"


def _impossible(values: np.ndarray) -> np.ndarray:
    """bool of the same shape: what a record cannot hold."""
    return ~(np.abs(values) <= LARGEST)


def _any_atom(molecules: Molecules, flags: np.ndarray) -> np.ndarray:
    """(M,) bool: whether a flag is set on an atom of each molecule."""
    return np.logical_or.reduceat(flags, molecules.offsets[:-1])


def _refuse(
    molecules: Molecules,
    rows: np.ndarray,
    bad: np.ndarray,
    key: str,
    found: str,
    advice: str,
    order: np.ndarray | None = None,
) -> None:
    if not bad.any():
        return
    first = rows[int(np.argmax(bad) if order is None else np.argmin(order))]
    more = f" ({counted(bad.sum(), 'record')} in all)" if bad.sum() > 1 else ""
    raise DataError(f"{molecules.where(first, key)}: {found}{more}; {advice}")


def smallest_distances(molecules: Molecules, rows: np.ndarray) -> np.ndarray:
    """(m,) A: the distance of the two closest atoms of each molecule; inf with one atom."""
    natoms = molecules.natoms[rows]
    result = np.full(len(rows), np.inf)
    for size in np.unique(natoms[natoms > 1]):
        same = np.flatnonzero(natoms == size)
        first, second = np.triu_indices(size, 1)
        for start in range(0, len(same), _CHUNK):
            part = same[start : start + _CHUNK]
            atoms = molecules.offsets[rows[part]][:, None] + np.arange(size)
            positions = molecules.positions[atoms].astype(np.float64)
            vectors = positions[:, first] - positions[:, second]
            result[part] = np.sqrt(np.einsum("mpx,mpx->mp", vectors, vectors).min(axis=1))
    return result


def file_record(path: str | Path) -> dict[str, Any]:
    """Name, size and SHA-256 of a source file."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"file": str(path), "bytes": Path(path).stat().st_size, "sha256": digest.hexdigest()}
