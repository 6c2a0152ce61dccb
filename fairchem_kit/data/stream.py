"""What a data source gives to the writer: records, of which few are in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .positions import near_origin

if TYPE_CHECKING:
    from torch_geometric.data import Data


@dataclass(frozen=True)
class Record:
    """One structure of N atoms with its labels.

    Attributes:
        numbers: (N,) atomic numbers. positions: (N, 3) A, moved near the origin when written.
        cell: (3, 3) A, rows are lattice vectors. pbc: (3,) bool. fixed: (N,), 1 for fixed atoms.
        tags: (N,), 0 below the surface, 1 surface, 2 adsorbate.
        sid: number of the system. fid: number of the frame in its source; None: not stored.
        labels: field of the record -> number, such as ``y``. vectors: field -> (N, 3), such as
            ``force``. Both in the units of the data set.
        double: labels as (1,) float64 tensors; fairchem converts plain numbers to float32.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    fixed: np.ndarray
    tags: np.ndarray
    sid: int
    fid: int | None = None
    labels: Mapping[str, float] = field(default_factory=dict)
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)
    double: bool = False

    @property
    def near(self) -> np.ndarray:
        """(N, 3) float64 A: the positions near the origin, where float32 resolves them."""
        return near_origin(np.asarray(self.positions, dtype=np.float64), self.cell, self.pbc)

    def data(self) -> Data:
        """The record as fairchem 1.10 has it.

        Returns:
            ``torch_geometric.data.Data`` with pos (N, 3) float32 A, cell (1, 3, 3) float32 A, pbc
            (1, 3) bool, atomic_numbers, fixed and tags (N,) int64, natoms, sid and fid (int), the
            labels (float) and the vectors (N, 3) float32. No NumPy objects, whose pickles depend
            on the NumPy version.
        """
        import torch
        from torch_geometric.data import Data

        numbers = {name: float(value) for name, value in self.labels.items()}
        return Data(
            **{name: torch.tensor(v, dtype=torch.float32) for name, v in self.vectors.items()},
            **{
                name: torch.tensor([value], dtype=torch.float64) if self.double else value
                for name, value in numbers.items()
            },
            pos=torch.tensor(self.near, dtype=torch.float32),
            cell=torch.tensor(self.cell, dtype=torch.float32).view(1, 3, 3),
            pbc=torch.tensor(self.pbc, dtype=torch.bool).view(1, 3),
            atomic_numbers=torch.tensor(self.numbers, dtype=torch.long),
            natoms=len(self.numbers),
            fixed=torch.tensor(self.fixed, dtype=torch.long),
            tags=torch.tensor(self.tags, dtype=torch.long),
            sid=int(self.sid),
            **({} if self.fid is None else {"fid": int(self.fid)}),
        )


class Records(Protocol):
    """M records in order. Iterating, perhaps in a worker process, reads them one at a time.

    Attributes:
        natoms, sid, fid: (M,) integers, known without reading the records.
    """

    natoms: np.ndarray
    sid: np.ndarray
    fid: np.ndarray

    def elements(self, rows: np.ndarray) -> list[int]:
        """Atomic numbers in some records, sorted."""

    def part(self, rows: np.ndarray) -> Records:
        """Only some records, as they are pickled for a worker process."""

    def __iter__(self) -> Iterator[Record]: ...
