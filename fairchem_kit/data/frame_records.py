"""Planned frames as records: read a second time, and written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .ase_files import iter_frames
from .errors import DataError, FrameError
from .frames import Frame, LabelOptions, read_frame
from .scan import Composition
from .sources import Source
from .stream import Record


@dataclass(frozen=True)
class FrameRecords:
    """M frames of files, grouped by file and in order within each.

    Attributes:
        sources: the files. options: where their labels are.
        source: (M,) index into ``sources``. fid: (M,) frame number in the file. sid: (M,) number
            of the system. natoms: (M,). reference: (M,) eV, subtracted from the energies.
        composition: (M,) index into ``compositions``.
    """

    sources: Sequence[Source]
    options: LabelOptions
    source: np.ndarray
    fid: np.ndarray
    sid: np.ndarray
    natoms: np.ndarray
    reference: np.ndarray
    composition: np.ndarray
    compositions: Sequence[Composition]

    def elements(self, rows: np.ndarray) -> list[int]:
        """Atomic numbers in some frames, sorted."""
        found = (self.compositions[number] for number in np.unique(self.composition[rows]))
        return sorted({z for composition in found for z, _ in composition})

    def part(self, rows: np.ndarray) -> FrameRecords:
        """Some of the frames, with their files only."""
        used, source = np.unique(self.source[rows], return_inverse=True)
        names = ("fid", "sid", "natoms", "reference")
        return replace(
            self,
            **{name: getattr(self, name)[rows] for name in names},
            sources=[self.sources[number] for number in used],
            source=source,
            composition=np.zeros(len(rows), dtype=np.int64),
            compositions=(),
        )

    def __iter__(self) -> Iterator[Record]:
        """Read the frames.

        Raises:
            DataError: a file is not what it was when it was scanned.
        """
        starts = np.flatnonzero(np.diff(self.source, prepend=-1))
        for rows in np.split(np.arange(len(self.source)), starts[1:]):
            source = self.sources[self.source[rows[0]]]
            changed = DataError(f"{source.path} changed while it was converted")
            left = iter(rows)
            for number, atoms in iter_frames(source, self.fid[rows]):
                row = next(left, None)
                if row is None or isinstance(atoms, Exception) or number != self.fid[row]:
                    raise changed
                try:
                    frame = read_frame(atoms, self.options)
                except FrameError:
                    raise changed from None
                yield to_record(
                    frame,
                    energy=frame.energy - float(self.reference[row]),
                    sid=self.sid[row],
                    fid=number,
                )
            if next(left, None) is not None:
                raise changed


def to_record(frame: Frame, *, energy: float, sid: int, fid: int) -> Record:
    """The record of a frame: ``y``, the (referenced) energy in eV, and ``force`` in eV/A."""
    return Record(
        **structure_of(frame),
        sid=sid,
        fid=fid,
        labels={"y": energy},
        vectors={"force": frame.forces},
    )


def structure_of(frame: Frame) -> dict[str, np.ndarray]:
    """The arguments of a :class:`Record` that describe the structure."""
    names = ("numbers", "positions", "cell", "pbc", "fixed", "tags")
    return {name: getattr(frame, name) for name in names}
