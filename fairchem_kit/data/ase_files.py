"""Reading frames from ASE's files, read-only and one frame at a time.

A source belongs to the user, and nothing here writes to it or next to it. ASE itself does: its
``connect`` turns any SQLite file into an ASE database.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

from .errors import DataError, FrameError
from .sources import Source

if TYPE_CHECKING:
    from ase import Atoms

#: what a reader yields: frame number (None: the whole file), and the frame or an error
Read = tuple[int | None, "Atoms | Exception"]
_OPEN: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_SQLITE = b"SQLite format 3\0"
_WAL = 2  # in bytes 18 and 19 of an SQLite file that uses a write-ahead log


def iter_frames(source: Source, frames: Sequence[int] | None = None) -> Iterator[Read]:
    """Read frames one at a time.

    Args:
        source: the file, compressed (.gz, .bz2, .xz) or not.
        frames: increasing frame numbers to read (from 0, file order; databases: order of row
            ids); None reads all.

    Yields:
        ``(frame number, Atoms)``, or ``(frame number, exception)`` for one that cannot be read,
        or ``(None, exception)`` for a file that cannot be read at all. Reading continues after an
        unreadable frame if the beginning of the next one can be found.

    Raises:
        DataError: no disk space to unpack a compressed file.
    """
    if frames is not None and len(frames) == 0:
        return
    reader = {"traj": _iter_trajectory, "xyz": _iter_xyz, "db": _iter_database}[source.kind]
    try:
        yield from reader(source.path, frames)
    except (
        OSError,
        EOFError,
        lzma.LZMAError,
        UnicodeError,
    ) as error:  # of the file
        yield None, error


@contextmanager
def _unpacked(path: str) -> Iterator[str]:
    """The path of an uncompressed file: this one, or a temporary copy."""
    opener = _OPEN.get(Path(path).suffix.lower())
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


def _iter_trajectory(path: str, frames: Sequence[int] | None) -> Iterator[Read]:
    from ase.io.trajectory import Trajectory

    with _unpacked(path) as plain:
        try:
            trajectory = Trajectory(plain)
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


def _iter_xyz(path: str, frames: Sequence[int] | None) -> Iterator[Read]:
    from ase.io import read

    wanted = None if frames is None else {int(f) for f in frames}
    last = None if frames is None else int(frames[-1])
    opener = _OPEN.get(Path(path).suffix.lower(), open)
    with opener(path, "rt", encoding="utf-8", errors="replace") as stream:
        for index, text in enumerate(_xyz_texts(stream)):
            if wanted is None or index in wanted:
                try:
                    if isinstance(text, Exception):
                        raise text
                    result = read(io.StringIO(text), index=0, format="extxyz")
                except Exception as error:
                    result = error
                yield index, result
            if index == last:
                return


def _xyz_texts(stream: IO[str]) -> Iterator[str | FrameError]:
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
        lines = [line, *(stream.readline() for _ in range(1 + max(natoms, 0)))]
        if not lines[-1]:
            found = sum(map(bool, lines)) - 2
            yield FrameError(f"the file ends after {max(found, 0)} of its {natoms} atoms")
            return
        line = stream.readline()
        while line.lstrip().startswith("VEC"):  # lattice vectors, as ADF writes them
            lines.append(line)
            line = stream.readline()
        yield "".join(lines)


def _iter_database(path: str, frames: Sequence[int] | None) -> Iterator[Read]:
    with _unpacked(path) as plain:
        try:
            database = _database(plain)
            ids = sorted(row.id for row in database.select(include_data=False))
        except Exception as error:
            yield None, error
            return
        with database:
            for index in range(len(ids)) if frames is None else frames:
                try:
                    row = database.get(id=ids[int(index)])
                    atoms = row.toatoms()
                    atoms.info.update({**row.data, **row.key_value_pairs})
                except Exception as error:
                    yield int(index), error
                    continue
                yield int(index), atoms


def _database(path: str) -> Any:
    """ASE's object for a database in JSON or SQLite that cannot be written through it.

    Raises:
        FrameError: with the reason.
    """
    from ase.db.jsondb import JSONDatabase
    from ase.db.sqlite import SQLite3Database

    if Path(path).suffix.lower() == ".json":
        return JSONDatabase(path, use_lock_file=False)
    with open(path, "rb") as stream:
        head = stream.read(100)
    if not head:
        raise FrameError("an empty file, not an ASE database")
    if not head.startswith(_SQLITE):
        raise FrameError("not an SQLite file, so not an ASE database")
    options = "mode=ro"
    if _WAL in head[18:20]:
        log = Path(f"{path}-wal")
        if log.exists() and log.stat().st_size:
            raise FrameError(
                f"another program has not finished writing to it ({log.name} is next to it); "
                "close that program, or give a copy made with `sqlite3 FILE '.backup COPY'`"
            )
        options += "&immutable=1"  # without it SQLite creates files next to one of this kind
    address = f"file:{quote(str(Path(path).resolve()))}?{options}"

    class ReadOnly(SQLite3Database):
        def _connect(self) -> sqlite3.Connection:
            return sqlite3.connect(address, timeout=20, uri=True)

        def _initialize(self, connection: sqlite3.Connection) -> None:
            if not self.initialized:
                _refuse_foreign(connection)
            super()._initialize(connection)

    return ReadOnly(path, create_indices=False, use_lock_file=False)


def _refuse_foreign(connection: sqlite3.Connection) -> None:
    try:
        found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        tables = sorted(row[0] for row in found)
    except sqlite3.OperationalError as error:
        raise FrameError(
            f"it cannot be opened read-only ({error}); if a program that was writing to it was "
            "killed, open it once with that program, or give a copy"
        ) from None
    if "systems" not in tables:
        has = f"its tables: {', '.join(tables[:5])}" if tables else "it has no tables"
        raise FrameError(f"an SQLite file of another program, not an ASE database ({has})")
