"""Relaxations in ASE files: their first and last frames, and whether they are relaxations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .ase_files import iter_frames
from .errors import FrameError
from .frames import Frame, LabelOptions, fixed_atoms, read_frame
from .sources import Source

if TYPE_CHECKING:
    from ase import Atoms

_SAME_CELL = 1e-3  # A, by which lattice vectors may differ
_HELD = 0.01  # A, by which a fixed atom may have moved
#: eV, by which a last frame may lie above the first before it is worth a word
RISE = 0.05


@dataclass(frozen=True)
class Relaxation:
    """First and last frame of a relaxation, how many frames it has, and its name in the source
    ("" where the source is one relaxation)."""

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
        """eV, how far the last frame lies above the first."""
        return self.last.energy - self.first.energy


@dataclass
class _Ends:
    """What is kept of the frames of one relaxation while they are read.

    Attributes:
        numbers: of the frames in the file. first, last: the ends. problem: with the first frame
            that cannot be of one relaxation with ``first``; "" as long as there is none.
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
        Those that can be used, and a message for each that cannot, or for the file: one that cannot
        be read, a database without ``system_key``, fewer than two frames, frames that are not of
        one relaxation, ends without labels.
    """
    if source.kind == "db" and options.system_key is None:
        return [], [
            f"{source.shown}: the rows of a database need not be steps of one relaxation; name the "
            "key that tells the relaxations apart with --system-key, or give a trajectory for each"
        ]
    found: dict[str, _Ends] = {}
    problems = []
    for index, atoms in iter_frames(source):
        where = source.shown + ("" if index is None else f": frame {index}")
        if isinstance(atoms, Exception):
            return [], [f"{where} cannot be read ({atoms})"]
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
        raise FrameError(f"{count} frame(s); a relaxation has a first and a last one")
    frames = []
    for number, atoms in ((ends.numbers[0], ends.first), (ends.numbers[-1], ends.last)):
        try:
            frames.append(read_frame(atoms, options))
        except FrameError as error:
            which = "first" if len(frames) == 0 else "last"
            raise FrameError(f"frame {number}, its {which}: {error}") from None
    return Relaxation(source, frames[0], frames[1], count, name)


def _same_system(first: Atoms, atoms: Atoms) -> None:
    """Refuse a frame that cannot be a step of the relaxation that ``first`` begins."""
    way_out = "give one file for each relaxation"
    if not np.array_equal(first.numbers, atoms.numbers):
        raise FrameError(
            f"it has different atoms ({atoms.symbols}) than the first frame ({first.symbols}); "
            f"{way_out}"
        )
    change = np.abs(first.cell[:] - atoms.cell[:]).max()
    if change > _SAME_CELL or (first.pbc != atoms.pbc).any():
        raise FrameError(
            f"its cell is not that of the first frame (it differs by up to {change:.3g} A); a "
            f"record has one cell, and models relax positions in it. {way_out.capitalize()}, or "
            "leave relaxations of the cell out"
        )
    held = np.flatnonzero(fixed_atoms(first))
    moved = atoms.positions[held] - first.positions[held]
    if len(held) and abs(np.linalg.det(first.cell[:])) > 1e-6:
        cells = np.where(first.pbc, np.round(moved @ np.linalg.inv(first.cell[:])), 0.0)
        moved = moved - cells @ first.cell[:]
    distances = np.linalg.norm(moved, axis=1)
    if distances.max(initial=0.0) > _HELD:
        raise FrameError(
            f"fixed atom {held[distances.argmax()]} is {distances.max():.3g} A from where it was in "
            f"the first frame: these are not steps of one relaxation; {way_out}"
        )
