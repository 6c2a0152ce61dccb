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
from .positions import FAR, near_origin


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
    try:
        positions = as_array(fields["pos"]).reshape(-1, 3)
        numbers = as_array(fields["atomic_numbers"]).astype(np.int64).reshape(-1)
        cell = as_array(fields.get("cell", np.zeros((3, 3)))).astype(np.float64).reshape(3, 3)
        pbc = fields.get("pbc")
        if pbc is None:  # OC20's own records have none: periodic if there is a cell
            pbc = np.full(3, bool(np.any(cell)))
        pbc = as_array(pbc).reshape(3).astype(bool)
        if positions.dtype == np.float64 and positions.size and np.abs(positions).max() > FAR:
            positions = near_origin(positions, cell, pbc)  # like the reader in training
        energy = fields.get("y", fields.get("energy"))
    except (DataError, KeyError) as error:
        raise DataError(
            f"{file}: record {number}: {error}; `ndem data check` lists all such records"
        ) from None
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
