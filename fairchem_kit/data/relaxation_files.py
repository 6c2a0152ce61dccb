"""Relaxations in files of frames: first and last frames, checks, and their records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fairchem_kit.words import counted

from .errors import FrameError, not_read
from .frame_files import Source, iter_frames
from .frame_records import structure_of
from .frames import Frame, LabelOptions, fixed_atoms, read_frame
from .positions import near_cell, near_origin
from .stream import Record

if TYPE_CHECKING:
    from ase import Atoms

_SAME_CELL = 1e-3  # A, by which lattice vectors may differ
_HELD = 0.01  # A, by which a fixed atom may have moved
#: eV, by which a last frame may be above the first without a warning
RISE = 0.05


@dataclass(frozen=True)
class Relaxation:
    """First and last frame of a relaxation, its number of frames, and its name in the source ("" if
    the source is one relaxation)."""

    source: Source
    first: Frame
    last: Frame
    frames: int
    name: str = ""

    @property
    def shown(self) -> str:
        """For messages and systems.json."""
        return self.source.shown + (f": {self.name}" if self.name else "")

    @property
    def rise(self) -> float:
        """Energy of the last frame minus that of the first, eV."""
        return self.last.energy - self.first.energy


def to_record(relaxation: Relaxation, sid: int, reference: float) -> Record:
    """The record of one relaxation: its initial structure, pos_relaxed (N, 3) A, y_init and
    y_relaxed (eV).

    Args:
        relaxation: its first and last frame. sid: its number. reference: eV, subtracted from the
            energies.
    """
    first, last = relaxation.first, relaxation.last
    shift = near_origin(first.positions, first.cell, first.pbc) - first.positions
    relaxed = near_cell(last.positions + shift, first.cell, first.pbc)
    return Record(
        **structure_of(first),
        sid=sid,
        labels={"y_init": first.energy - reference, "y_relaxed": last.energy - reference},
        vectors={"pos_relaxed": relaxed},
    )


@dataclass
class _Ends:
    """What is stored of one relaxation while its frames are read.

    Attributes:
        numbers: of the frames in the file. first, last: the first and last frame. problem: of the
            first frame that cannot belong to the same relaxation as ``first``; "" if there is none.
    """

    numbers: list[int] = field(default_factory=list)
    first: Atoms | None = None
    last: Atoms | None = None
    problem: str = ""

    def add(self, number: int, atoms: Atoms) -> None:
        """Add a frame."""
        try:
            if self.first is not None:
                _same_system(self.first, atoms)
        except FrameError as error:
            self.problem = self.problem or f"frame {number}: {error}"
        self.first = self.first or atoms
        self.last = atoms
        self.numbers.append(number)


def read_relaxations(source: Source, options: LabelOptions) -> tuple[list[Relaxation], list[str]]:
    """The relaxations of a file: one, or one for each value of ``options.system_key``.

    Returns:
        Those that can be used, and a message for each that cannot or for the file: it cannot be
        read, is a database without ``system_key``, has fewer than two frames, frames that are not
        from one relaxation, or first or last frames without labels.
    """
    if source.suffix in (".db", ".json") and options.system_key is None:
        return [], [
            f"{source.shown}: the rows of a database may belong to different relaxations; give the "
            "key that distinguishes them with --system-key, or one trajectory for each"
        ]
    found: dict[str, _Ends] = {}
    problems = []
    for index, atoms in iter_frames(source):
        where = source.shown + ("" if index is None else f": frame {index}")
        if isinstance(atoms, Exception):
            return [], [f"{where} {not_read(atoms)}"]
        name = ""
        if options.system_key is not None:
            if options.system_key not in atoms.info:
                problems.append(
                    f"{where}: no {options.system_key!r} (--system-key) in {sorted(atoms.info)}"
                )
                continue
            name = str(atoms.info[options.system_key])
        found.setdefault(name, _Ends()).add(int(index or 0), atoms)
    relaxations = []
    for name, ends in (found or ({} if problems else {"": _Ends()})).items():
        where = source.shown + (f": {options.system_key} {name}" if name else "")
        try:
            relaxations.append(_relaxation(source, name, ends, options))
        except FrameError as error:
            problems.append(f"{where}: {error}")
    return relaxations, problems


def _relaxation(source: Source, name: str, ends: _Ends, options: LabelOptions) -> Relaxation:
    if ends.problem:
        raise FrameError(ends.problem)
    count = len(ends.numbers)
    if count < 2:
        raise FrameError(f"{counted(count, 'frame')}; a relaxation needs a first and a last one")
    frames = []
    for number, atoms in ((ends.numbers[0], ends.first), (ends.numbers[-1], ends.last)):
        try:
            frames.append(read_frame(atoms, options))
        except FrameError as error:
            which = "first" if len(frames) == 0 else "last"
            raise FrameError(f"frame {number}, its {which}: {error}") from None
    return Relaxation(source, frames[0], frames[1], count, name)


def _same_system(first: Atoms, atoms: Atoms) -> None:
    """Refuse a frame that cannot belong to the same relaxation as ``first``."""
    advice = "give one file for each relaxation"
    if not np.array_equal(first.numbers, atoms.numbers):
        raise FrameError(
            f"it has different atoms ({atoms.symbols}) than the first frame ({first.symbols}); "
            f"{advice}"
        )
    change = np.abs(first.cell[:] - atoms.cell[:]).max()
    if change > _SAME_CELL or (first.pbc != atoms.pbc).any():
        raise FrameError(
            f"its cell is not that of the first frame (it differs by up to {change:.3g} A); a "
            f"record has one cell, and models relax positions in it. {advice.capitalize()}, or "
            "leave out cell relaxations"
        )
    held = np.flatnonzero(fixed_atoms(first))
    moved = atoms.positions[held] - first.positions[held]
    if len(held) and abs(np.linalg.det(first.cell[:])) > 1e-6:
        cells = np.where(first.pbc, np.round(moved @ np.linalg.inv(first.cell[:])), 0.0)
        moved = moved - cells @ first.cell[:]
    distances = np.linalg.norm(moved, axis=1)
    if distances.max(initial=0.0) > _HELD:
        raise FrameError(
            f"fixed atom {held[distances.argmax()]} is {distances.max():.3g} A from where it was "
            f"in the first frame: these are not steps of one relaxation; {advice}"
        )
