"""Finding and reading the ASE files that a data set is made from."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import DataError

if TYPE_CHECKING:
    from ase import Atoms

SUFFIXES = {".traj": "traj", ".extxyz": "xyz", ".xyz": "xyz", ".db": "db", ".json": "db"}
#: suffixes looked for in directories; .json only counts as a database when it is named itself
DIRECTORY_SUFFIXES = (".traj", ".extxyz", ".xyz", ".db")


@dataclass(frozen=True)
class Source:
    """One file of frames.

    Attributes:
        path: the file.
        name: short unique name within one conversion (the stem where that is unique).
        kind: ``traj`` (ASE trajectory), ``xyz`` ((ext)xyz) or ``db`` (ASE database).
        origin: what the records of the conversion say in place of the path.
    """

    path: str
    name: str
    kind: str
    origin: str = ""

    @property
    def shown(self) -> str:
        """The path, or the origin where that is given."""
        return self.origin or self.path


def expand_sources(arguments: Sequence[str]) -> list[Source]:
    """Files named by paths, directories (searched recursively) and glob patterns.

    A file that is named twice is used once. Order: as given, sorted within directories and globs.

    Raises:
        DataError: nothing found, or a file of an unknown kind.
    """
    paths: dict[Path, Path] = {}
    for argument in arguments:
        found = _expand_one(argument)
        if not found:
            raise DataError(
                f"{argument}: no such file or directory, or nothing in it ends in "
                f"{', '.join(DIRECTORY_SUFFIXES)}"
            )
        for path in found:
            paths.setdefault(path.resolve(), path)
    for path in paths.values():
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{path}: files of this kind cannot be read; known: {', '.join(SUFFIXES)}. "
                "Convert it first, for example with `ase convert FILE out.traj`"
            )
    return _named(list(paths.values()))


def _expand_one(argument: str) -> list[Path]:
    path = Path(argument).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = (p for p in path.rglob("*") if p.suffix.lower() in DIRECTORY_SUFFIXES)
        return sorted(p for p in found if p.is_file())
    matches = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
    return [
        p for match in matches for p in (_expand_one(str(match)) if match.is_dir() else [match])
    ]


def _named(paths: list[Path]) -> list[Source]:
    """Give each file the shortest of stem, parent/stem and full path that is unique."""
    candidates = [(p.stem, f"{p.parent.name}/{p.stem}", str(p)) for p in paths]
    counts = [Counter(column) for column in zip(*candidates, strict=True)]
    sources = []
    for path, names in zip(paths, candidates, strict=True):
        unique = (name for name, count in zip(names, counts, strict=True) if count[name] == 1)
        name = next(unique, str(path))
        sources.append(Source(str(path), name, SUFFIXES[path.suffix.lower()]))
    return sources


def iter_frames(
    source: Source, frames: Sequence[int] | None = None
) -> Iterator[tuple[int | None, Atoms | Exception]]:
    """Read frames one at a time.

    Args:
        source: the file.
        frames: increasing frame numbers to read (from 0, file order; databases: order of row
            ids); None reads all.

    Yields:
        ``(frame number, Atoms)``, or ``(frame number, exception)`` for one that cannot be read,
        or ``(None, exception)`` for a file that cannot be read at all. Reading goes on after an
        unreadable frame where the format allows it (not in (ext)xyz).
    """
    reader = {"traj": _iter_trajectory, "xyz": _iter_xyz, "db": _iter_database}[source.kind]
    yield from reader(source.path, frames)


def _iter_trajectory(
    path: str, frames: Sequence[int] | None
) -> Iterator[tuple[int | None, Atoms | Exception]]:
    from ase.io.trajectory import Trajectory

    try:
        trajectory = Trajectory(path)
        count = len(trajectory)
    except Exception as error:  # ase raises many kinds for a damaged file
        yield None, error
        return
    with trajectory:
        for index in range(count) if frames is None else frames:
            try:
                atoms = trajectory[int(index)]
            except Exception as error:
                yield int(index), error
                continue
            yield int(index), atoms


def _iter_xyz(
    path: str, frames: Sequence[int] | None
) -> Iterator[tuple[int | None, Atoms | Exception]]:
    from ase.io import iread

    if frames is not None and len(frames) == 0:
        return
    first, last = (0, None) if frames is None else (int(frames[0]), int(frames[-1]) + 1)
    wanted = None if frames is None else {int(f) for f in frames}
    index = first
    reader = iread(path, index=slice(first, last), format="extxyz")
    while True:
        try:
            atoms = next(reader)
        except StopIteration:
            return
        except Exception as error:
            yield index, error
            return
        if wanted is None or index in wanted:
            yield index, atoms
        index += 1


def _iter_database(
    path: str, frames: Sequence[int] | None
) -> Iterator[tuple[int | None, Atoms | Exception]]:
    from ase.db import connect

    try:
        database = connect(path)
        ids = sorted(row.id for row in database.select(include_data=False))
    except Exception as error:
        yield None, error
        return
    for index in range(len(ids)) if frames is None else frames:
        try:
            row = database.get(id=ids[int(index)])
            atoms = row.toatoms()
            atoms.info.update(row.key_value_pairs)
        except Exception as error:
            yield int(index), error
            continue
        yield int(index), atoms
