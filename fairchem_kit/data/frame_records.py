"""Planned frames as records: read a second time, and written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .errors import DataError, FrameError
from .frame_files import iter_frames
from .frames import Frame, LabelOptions, read_frame
from .scan import FrameTable
from .stream import Record


@dataclass(frozen=True)
class FrameRecords:
    """The M frames of a table, grouped by file and in order within each.

    Attributes:
        options: where the labels are. sid: (M,) number of the system. reference: (M,) eV,
            subtracted from the energies.
    """

    table: FrameTable
    options: LabelOptions
    sid: np.ndarray
    reference: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "natoms", self.table.natoms)
        object.__setattr__(self, "fid", self.table.frame)

    def elements(self, rows: np.ndarray) -> list[int]:
        """Atomic numbers in some frames, sorted."""
        table = self.table
        found = (table.compositions[number] for number in np.unique(table.composition[rows]))
        return sorted({z for composition in found for z, _ in composition})

    def part(self, rows: np.ndarray) -> FrameRecords:
        """Some of the frames, with their files and without what only planning needs."""
        used, source = np.unique(self.table.source[rows], return_inverse=True)
        files = [self.table.sources[number] for number in used]
        small = replace(
            self.table.select(rows), source=source, sources=files, systems=[], compositions=[]
        )
        return FrameRecords(small, self.options, self.sid[rows], self.reference[rows])

    def __iter__(self) -> Iterator[Record]:
        """Read the frames.

        Raises:
            DataError: a file is not what it was when it was scanned.
        """
        for number in np.unique(self.table.source):
            rows = np.flatnonzero(self.table.source == number)
            source = self.table.sources[number]
            changed = DataError(f"{source.path} changed while it was converted")
            left = iter(rows)
            for fid, atoms in iter_frames(source, self.table.frame[rows]):
                row = next(left)
                if isinstance(atoms, Exception) or fid != self.table.frame[row]:
                    raise changed
                try:
                    frame = read_frame(atoms, self.options)
                except FrameError:
                    raise changed from None
                yield Record(
                    **structure_of(frame),
                    sid=self.sid[row],
                    fid=fid,
                    labels={"y": frame.energy - float(self.reference[row])},
                    vectors={"force": frame.forces},
                )
            if next(left, None) is not None:
                raise changed


def structure_of(frame: Frame) -> dict[str, Any]:
    """The arguments of a :class:`Record` that describe the structure."""
    names = ("numbers", "positions", "cell", "pbc", "fixed", "tags")
    return {name: getattr(frame, name) for name in names}
