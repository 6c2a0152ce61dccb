"""Files of frames: finding them, and reading one frame at a time."""

from __future__ import annotations

import bz2
import errno
import glob
import gzip
import lzma
import os
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairchem_kit.files import check_name, existing

from .errors import DataError, FrameError

if TYPE_CHECKING:
    from ase import Atoms

#: what a reader yields: frame number (None: the whole file), and the frame or an error
Read = tuple[int | None, "Atoms | Exception"]
#: a file of any kind may be compressed: frames.extxyz.gz
COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


class FrameReader:
    """Reads one kind of file. Instances are pickled for worker processes.

    Attributes:
        suffixes: of the files. only_named: those that are not looked for in directories.
        advice: for files with another suffix, a sentence.
    """

    suffixes: tuple[str, ...]
    only_named: tuple[str, ...] = ()
    advice = ""

    def frames(self, path: str) -> Iterator[Atoms | FrameError]:
        """All frames of an uncompressed file in its order, with ASE's energy (eV) and forces (eV/A,
        without the effect of constraints), usually in a ``SinglePointCalculator``.

        A frame that cannot be read is given as a ``FrameError`` with the reason. An exception
        of any kind is the reason for which the rest of the file is not read.
        """
        raise NotImplementedError

    def read(self, path: str, numbers: Sequence[int] | None = None) -> Iterator[Read]:
        """See :func:`iter_frames`."""
        wanted = None if numbers is None else {int(number) for number in numbers}
        with unpacked(path) as plain:
            frames = iter(self.frames(plain))
            for number in count():
                end = False
                try:
                    frame: Any = next(frames, None)
                except Exception as error:  # a file can contain anything
                    kind = "" if isinstance(error, FrameError) else f"{type(error).__name__}: "
                    frame, end = (
                        FrameError(f"{kind}{error}; the rest of the file is not read"),
                        True,
                    )
                if frame is None:
                    return
                if wanted is None or number in wanted:
                    yield number, frame
                if end or (numbers is not None and number == numbers[-1]):
                    return


@dataclass(frozen=True)
class Source:
    """One file of frames.

    Attributes:
        path: the file.
        name: short unique name within one conversion (the stem if it is unique).
        reader: of its kind.
        origin: recorded in dataset.json instead of the path.
    """

    path: str
    name: str
    reader: FrameReader
    origin: str = ""

    @property
    def shown(self) -> str:
        """The origin if given, else the path."""
        return self.origin or self.path

    @property
    def suffix(self) -> str:
        """The suffix, without that of a compressed file."""
        return suffix_of(Path(self.path))


def iter_frames(source: Source, frames: Sequence[int] | None = None) -> Iterator[Read]:
    """Read frames one at a time.

    Args:
        source: the file, compressed (.gz, .bz2, .xz) or not.
        frames: increasing frame numbers to read (from 0, file order; databases: order of row
            ids); None reads all.

    Yields:
        ``(frame number, Atoms)``, or ``(frame number, exception)`` for one that cannot be read,
        or ``(None, exception)`` for a file that cannot be read at all or has no frame. Reading
        continues after an unreadable frame if the beginning of the next one can be found.

    Raises:
        DataError: no disk space to unpack a compressed file.
    """
    if frames is not None and len(frames) == 0:
        return
    empty = frames is None
    try:
        for found in source.reader.read(source.path, frames):
            empty = False
            yield found
    except (
        OSError,
        EOFError,
        lzma.LZMAError,
        zlib.error,
        UnicodeError,
    ) as error:  # of the file
        yield None, error
        return
    if empty:
        yield None, FrameError("there are no frames in it")


@contextmanager
def unpacked(path: str) -> Iterator[str]:
    """The path of an uncompressed file: this one, or a temporary copy."""
    opener = COMPRESSED.get(Path(path).suffix.lower())
    if opener is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="ndem-unpacked-") as folder:
        copy = Path(folder) / Path(path).stem
        try:
            with opener(path, "rb") as packed, copy.open("wb") as plain:
                shutil.copyfileobj(packed, plain, 1 << 20)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            raise DataError(
                f"{path}: cannot be unpacked in {folder} ({error.strerror}); unpack it "
                "yourself, or set TMPDIR to a folder with enough space"
            ) from None
        yield str(copy)


def _nothing(argument: str, sought: Sequence[str]) -> str:
    """Why an argument gives no files."""
    if Path(argument).expanduser().is_dir():
        return f"nothing in this folder ends in {', '.join(sought)}"
    if glob.has_magic(argument):
        return "no file matches this pattern"
    return "no such file or directory"


def expand(arguments: Sequence[str], reader: FrameReader) -> list[Source]:
    """The files given as paths, directories (searched recursively) and glob patterns.

    A file that is given twice is used once. Order: as given, sorted within directories and globs.

    Raises:
        DataError: nothing found, or a file of an unknown kind.
    """
    sought = [suffix for suffix in reader.suffixes if suffix not in reader.only_named]
    paths: dict[Path, Path] = {}
    for argument in arguments:
        if Path(argument).is_symlink():
            existing(argument, DataError)  # also refuses broken links and links to themselves
        found = _expand_one(argument, sought)
        if not found:
            raise DataError(f"{argument}: {_nothing(argument, sought)}")
        for path in found:
            # not resolve(), which raises another error for a link to itself
            paths.setdefault(Path(os.path.realpath(path)), path)
    for path in paths.values():
        check_name(path, DataError)
        if suffix_of(path) not in reader.suffixes:
            raise DataError(
                f"{path}: files of this kind cannot be read; known: {', '.join(reader.suffixes)}, "
                f"also compressed ({', '.join(COMPRESSED)}). {reader.advice}".strip()
            )
    _refuse_twins(paths)
    return _named(list(paths.values()), reader)


def _plain(path: Path) -> Path:
    """The path without the suffix of a compressed file."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


def suffix_of(path: Path) -> str:
    """The suffix of a file, without that of a compressed one."""
    return _plain(path).suffix.lower()


def _refuse_twins(paths: Mapping[Path, Path]) -> None:
    """Refuse a file together with its compressed copy: its frames could be in two splits."""
    for resolved, path in paths.items():
        if _plain(resolved) != resolved and _plain(resolved) in paths:
            raise DataError(
                f"{path} and {_plain(path).name} are both among the sources; if one is a "
                "compressed copy of the other, give only one of them, else rename one"
            )


def _expand_one(argument: str, suffixes: Sequence[str]) -> list[Path]:
    path = Path(argument).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = (p for p in path.rglob("*") if suffix_of(p) in suffixes)
        return sorted(p for p in found if p.is_file())
    matches = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
    return [
        p
        for match in matches
        for p in (_expand_one(str(match), suffixes) if match.is_dir() else [match])
    ]


def _named(paths: list[Path], reader: FrameReader) -> list[Source]:
    """Give each file the shortest of stem, parent/stem and full path that is unique."""
    stems = [_plain(path).stem for path in paths]
    candidates = [(s, f"{p.parent.name}/{s}", str(p)) for s, p in zip(stems, paths, strict=True)]
    counts = [Counter(column) for column in zip(*candidates, strict=True)]
    sources = []
    for path, names in zip(paths, candidates, strict=True):
        unique = (name for name, count in zip(names, counts, strict=True) if count[name] == 1)
        name = next(unique, str(path))
        sources.append(Source(str(path), name, reader))
    return sources
