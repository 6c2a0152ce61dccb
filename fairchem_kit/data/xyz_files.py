"""Reading (ext)xyz files frame by frame, with the reason where a frame is incomplete."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import IO

from fairchem_kit.words import counted

from .errors import CUT_OFF, FrameError
from .frame_files import COMPRESSED, Read


def iter_xyz(path: str, frames: Sequence[int] | None) -> Iterator[Read]:
    """Read an (ext)xyz file, compressed or not; see ``frame_files.iter_frames``."""
    from ase.io import read

    wanted = None if frames is None else {int(f) for f in frames}
    last = None if frames is None else int(frames[-1])
    opener = COMPRESSED.get(Path(path).suffix.lower(), open)
    with opener(path, "rt", encoding="utf-8", errors="replace") as stream:
        for index, text in enumerate(_texts(stream)):
            if wanted is None or index in wanted:
                try:
                    if isinstance(text, Exception):
                        raise text
                    result = read(io.StringIO(text), index=0, format="extxyz")
                except Exception as error:
                    result = error if isinstance(text, Exception) else _uneven(text) or error
                yield index, result
            if index == last:
                return


def _texts(stream: IO[str]) -> Iterator[str | FrameError]:
    """The text of each frame of an (ext)xyz file. After a wrong number of atoms or a truncated
    frame, the beginning of the next one cannot be found."""
    line = stream.readline()
    while line:
        if not line.strip():  # for ASE's own reader an empty line is the end of the file
            line = stream.readline()
            continue
        try:
            natoms = int(line)
        except ValueError:
            yield FrameError(
                f"its first line should be a number of atoms and is {line.strip()[:40]!r}; the "
                "rest of the file is not read"
            )
            return
        natoms = max(natoms, 0)
        lines = [line, *islice(iter(stream.readline, ""), 1 + natoms)]
        if len(lines) < 2 + natoms:
            found = max(len(lines) - 2, 0)
            yield FrameError(
                f"the file ends after {found} of its {counted(natoms, 'atom')}; {CUT_OFF}"
            )
            return
        if natoms > 1 and not lines[-1].endswith("\n") and _is_shorter(lines[-1], lines[2:-1]):
            yield FrameError(
                "the last line is shorter than the others and does not end with a line break; "
                f"{CUT_OFF}. If it is complete, add the line break"
            )
            return
        line = stream.readline()
        while line.lstrip().startswith("VEC"):  # lattice vectors, as ADF writes them
            lines.append(line)
            line = stream.readline()
        yield "".join(lines)


def _uneven(text: str) -> FrameError | None:
    """The first atom with fewer columns than the one before it, if there is one."""
    columns = [len(line.split()) for line in text.splitlines()[2 : 2 + int(text.split()[0])]]
    for atom, (before, here) in enumerate(pairwise(columns), start=1):
        if here < before:
            return FrameError(f"atom {atom} has {counted(here, 'column')}, those above {before}")
    return None


def _is_shorter(last: str, others: Sequence[str]) -> bool:
    """Whether a line has fewer columns than all others, or its last number fewer decimals."""

    def size(line: str) -> tuple[int, int]:
        columns = line.split() or [""]
        return len(columns), len(columns[-1].partition(".")[2])

    return size(last) < min(map(size, others))
