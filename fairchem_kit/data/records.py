"""Iterating over the records of a split, as structures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .aselmdb import iter_fields, record_files
from .errors import DataError
from .fields import as_array, forces_of, free_atoms, has_energy, has_forces, sid_of
from .frames import MAX_ATOMIC_NUMBER
from .positions import FAR, near_origin
from .record_check import geometry_problem, number_problem, shape_problem

_STRUCTURE = ("pos", "cell", "pbc", "atomic_numbers", "fixed")


@dataclass(frozen=True)
class Structure:
    """A record of N atoms as NumPy arrays, in the data set's own units.

    Attributes:
        file, number: of the record. sid: its system; None if unknown.
        numbers: (N,) atomic numbers. positions: (N, 3) A, float32. cell: (3, 3) A. pbc: (3,) bool.
        free: (N,) bool, false for fixed atoms.
        forces: (N, 3) float64; None without labels. energy: None without a label.
    """

    file: str
    number: int
    sid: Any
    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    free: np.ndarray
    forces: np.ndarray | None
    energy: float | None

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.file}: record {self.number}"

    def with_usable_forces(self) -> Structure:
        """The structure, without forces that are not finite, or not one vector for each atom."""
        if self.forces is None:
            return self
        usable = self.forces.shape == (len(self.numbers), 3) and np.isfinite(self.forces).all()
        return self if usable else replace(self, forces=None)


def iter_structures(path: str | Path) -> Iterator[Structure]:
    """The records of a split in order.

    Args:
        path: directory with \\*.lmdb files (or \\*.aselmdb, of fairchem 2), or one such file.

    Raises:
        DataError: no records, or one that is missing or damaged.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or directory")
    for shard in [path] if path.is_file() else record_files(path):
        for number, fields in iter_fields(shard):
            yield _structure(str(shard), number, fields)


def _structure(file: str, number: int, fields: dict[str, Any]) -> Structure:
    problem = _problem(fields)
    if problem is not None:
        raise DataError(
            f"{file}: record {number}: {problem}; `ndem data check` lists all such records"
        )
    positions = as_array(fields["pos"])
    numbers = as_array(fields["atomic_numbers"]).astype(np.int64)
    cell, pbc = _cell(fields)
    if positions.dtype == np.float64 and np.abs(positions).max(initial=0.0) > FAR:
        positions = near_origin(positions, cell, pbc)  # like the reader in training
    energy = fields.get("y", fields.get("energy"))
    return Structure(
        file=file,
        number=number,
        sid=sid_of(fields),
        numbers=numbers,
        positions=positions.astype(np.float32),
        cell=cell,
        pbc=pbc,
        free=free_atoms(fields),
        forces=forces_of(fields) if has_forces(fields) else None,
        energy=float(as_array(energy).reshape(-1)[0]) if has_energy(fields) else None,
    )


def _problem(fields: dict[str, Any]) -> str | None:
    """Why a record has no usable structure; None if it has one. Forces are not looked at."""
    missing = [key for key in ("pos", "atomic_numbers") if fields.get(key) is None]
    if missing:
        return f"no `{missing[0]}`"
    keys = [k for k in (*_STRUCTURE, "natoms") if fields.get(k) is not None]
    arrays = {key: as_array(fields[key]) for key in keys}
    arrays.setdefault("natoms", np.array(len(np.atleast_1d(arrays["pos"]))))
    problem = shape_problem(arrays, _STRUCTURE)
    if problem is None:
        numbers = {k: arrays[k] for k in ("pos", "cell", "atomic_numbers") if k in arrays}
        problem = number_problem(numbers, MAX_ATOMIC_NUMBER)
    if problem is None:
        cell, pbc = _cell(fields)
        problem = geometry_problem({"pos": arrays["pos"], "cell": cell, "pbc": pbc}, None, None)
    if problem is None and has_energy(fields):
        energy = as_array(fields.get("y", fields.get("energy")))
        problem = ("shape", "the energy is not one number") if energy.size != 1 else None
    return None if problem is None else problem[1]


def _cell(fields: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(3, 3) A and (3,) bool."""
    cell = np.zeros((3, 3)) if fields.get("cell") is None else as_array(fields["cell"])
    pbc = fields.get("pbc")
    if pbc is None:  # OC20's own records have none: periodic if there is a cell
        pbc = np.full(3, bool(np.any(cell)))
    return cell.astype(np.float64).reshape(3, 3), as_array(pbc).reshape(3).astype(bool)
