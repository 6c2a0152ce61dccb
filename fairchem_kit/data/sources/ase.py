"""ASE trajectories and databases -> S2EF LMDBs in OC20's layout.

Files are read-only, and one frame is read at a time. A source belongs to the user, and nothing here
writes to it or next to it. ASE itself does: its ``connect`` turns any SQLite file into an ASE
database.
"""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from fairchem_kit.data.errors import FrameError
from fairchem_kit.data.frame_files import (
    COMPRESSED,
    Read,
    Source,
    expand,
    suffix_of,
    unpacked,
)
from fairchem_kit.data.frame_source import FrameSource
from fairchem_kit.data.sources import register

DATABASES = (".db", ".json")
_ULM = b"- of Ulm"  # ASE's trajectories begin with it
_SQLITE = b"SQLite format 3\0"
_WAL = 2  # in bytes 18 and 19 of an SQLite file that uses a write-ahead log


@register
class AseFiles(FrameSource):
    """Trajectories, (ext)xyz files and databases of ASE."""

    description = "Convert .traj, .extxyz/.xyz and ASE databases (.db, .json) to sharded LMDBs."
    suffixes = (".traj", ".extxyz", ".xyz", *DATABASES)
    only_named = (".json",)
    advice = (
        "Convert it first, for example with `ase convert FILE out.traj`; for MD17's .npz there is "
        "`ndem data md17`"
    )

    def read(self, path: str, numbers: Sequence[int] | None = None) -> Iterator[Read]:
        suffix = suffix_of(Path(path))
        if suffix in DATABASES:
            return _iter_database(path, numbers)
        return _iter_trajectory(path, numbers) if suffix == ".traj" else _iter_xyz(path, numbers)


def expand_sources(arguments: Sequence[str]) -> list[Source]:
    """:func:`fairchem_kit.data.frame_files.expand` for ASE's files."""
    return expand(arguments, AseFiles())


def _iter_trajectory(path: str, frames: Sequence[int] | None) -> Iterator[Read]:
    from ase.io.trajectory import Trajectory

    with unpacked(path) as plain:
        with open(plain, "rb") as file:
            start = file.read(len(_ULM))
        if start != _ULM:
            found = "an empty file" if not start else f"it starts with {start!r}"
            yield None, FrameError(f"{found}, not an ASE trajectory")
            return
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
    opener = COMPRESSED.get(Path(path).suffix.lower(), open)
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
    with unpacked(path) as plain:
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
