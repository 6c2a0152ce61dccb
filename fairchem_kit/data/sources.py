"""Finding the ASE files from which a data set is made."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairchem_kit.files import existing

from .errors import DataError

SUFFIXES = {".traj": "traj", ".extxyz": "xyz", ".xyz": "xyz", ".db": "db", ".json": "db"}
#: suffixes looked for in directories; a .json file is used only if it is named itself
DIRECTORY_SUFFIXES = (".traj", ".extxyz", ".xyz", ".db")
#: a file of any kind may be compressed: frames.extxyz.gz
COMPRESSED = (".gz", ".bz2", ".xz")


@dataclass(frozen=True)
class Source:
    """One file of frames.

    Attributes:
        path: the file.
        name: short unique name within one conversion (the stem if it is unique).
        kind: ``traj`` (ASE trajectory), ``xyz`` ((ext)xyz) or ``db`` (ASE database).
        origin: recorded in dataset.json instead of the path.
    """

    path: str
    name: str
    kind: str
    origin: str = ""

    @property
    def shown(self) -> str:
        """The origin if given, else the path."""
        return self.origin or self.path


def expand_sources(arguments: Sequence[str]) -> list[Source]:
    """The files given as paths, directories (searched recursively) and glob patterns.

    A file that is given twice is used once. Order: as given, sorted within directories and globs.

    Raises:
        DataError: nothing found, or a file of an unknown kind.
    """
    paths: dict[Path, Path] = {}
    for argument in arguments:
        if Path(argument).is_symlink():
            existing(argument, DataError)  # also refuses broken links and links to themselves
        found = _expand_one(argument)
        if not found:
            raise DataError(
                f"{argument}: no such file or directory, or nothing in it ends in "
                f"{', '.join(DIRECTORY_SUFFIXES)}"
            )
        for path in found:
            # not resolve(), which raises another error for a link to itself
            paths.setdefault(Path(os.path.realpath(path)), path)
    for path in paths.values():
        if _suffix(path) not in SUFFIXES:
            raise DataError(
                f"{path}: files of this kind cannot be read; known: {', '.join(SUFFIXES)}, also "
                f"compressed ({', '.join(COMPRESSED)}). Convert it first, for example with "
                "`ase convert FILE out.traj`"
            )
    _refuse_twins(paths)
    return _named(list(paths.values()))


def _plain(path: Path) -> Path:
    """The path without the suffix of a compressed file."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


def _suffix(path: Path) -> str:
    return _plain(path).suffix.lower()


def _refuse_twins(paths: Mapping[Path, Path]) -> None:
    """Refuse a file together with its compressed copy: its frames could be in two splits."""
    for resolved, path in paths.items():
        if _plain(resolved) != resolved and _plain(resolved) in paths:
            raise DataError(
                f"{path} and {_plain(path).name} are both among the sources; if one is a "
                "compressed copy of the other, give only one of them, else rename one"
            )


def _expand_one(argument: str) -> list[Path]:
    path = Path(argument).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = (p for p in path.rglob("*") if _suffix(p) in DIRECTORY_SUFFIXES)
        return sorted(p for p in found if p.is_file())
    matches = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
    return [
        p for match in matches for p in (_expand_one(str(match)) if match.is_dir() else [match])
    ]


def _named(paths: list[Path]) -> list[Source]:
    """Give each file the shortest of stem, parent/stem and full path that is unique."""
    stems = [_plain(path).stem for path in paths]
    candidates = [(s, f"{p.parent.name}/{s}", str(p)) for s, p in zip(stems, paths, strict=True)]
    counts = [Counter(column) for column in zip(*candidates, strict=True)]
    sources = []
    for path, names in zip(paths, candidates, strict=True):
        unique = (name for name, count in zip(names, counts, strict=True) if count[name] == 1)
        name = next(unique, str(path))
        sources.append(Source(str(path), name, SUFFIXES[_suffix(path)]))
    return sources
