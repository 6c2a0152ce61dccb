"""ASE trajectories and databases -> S2EF LMDBs in OC20's layout.

Files are read-only, and one frame is read at a time. A source belongs to the user, and nothing here
writes to it or next to it. ASE itself does: its ``connect`` turns any SQLite file into an ASE
database.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fairchem_kit.data.errors import CUT_OFF, FrameError
from fairchem_kit.data.frame_files import (
    Read,
    Source,
    expand,
    suffix_of,
    unpacked,
)
from fairchem_kit.data.frame_source import FrameSource
from fairchem_kit.data.sources import register
from fairchem_kit.data.xyz_files import iter_xyz
from fairchem_kit.words import counted

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
        return _iter_trajectory(path, numbers) if suffix == ".traj" else iter_xyz(path, numbers)


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
            yield None, _missing(error, "its table of frames is")
            return
        with trajectory:
            failed: list[Read] = []  # and no frame after them has been read
            for index in range(count) if frames is None else frames:
                try:
                    atoms = trajectory[int(index)]
                except Exception as error:
                    failed.append((int(index), error))
                    continue
                yield from failed
                failed.clear()
                yield int(index), atoms
            yield from _one_for_all(failed)


def _one_for_all(failed: Sequence[Read]) -> Iterator[Read]:
    """One error for the unreadable frames at the end of a trajectory, which has been cut off."""
    if failed:
        number, error = failed[0]
        more = f"this frame and {counted(len(failed) - 1, 'frame')} after it"
        yield number, _missing(error, f"{more} are" if failed[1:] else "a part of this frame is")


def _missing(error: Any, what: str) -> Exception:
    """What a library raises where a file is cut off, in words; errors of a disk and of a database
    in use stay as they are."""
    if isinstance(error, (FrameError, OSError, sqlite3.OperationalError)):
        return error
    return FrameError(f"{what} missing or damaged; {CUT_OFF}")


def _iter_database(path: str, frames: Sequence[int] | None) -> Iterator[Read]:
    with unpacked(path) as plain:
        try:
            database = _database(plain)
            ids = sorted(row.id for row in database.select(include_data=False))
        except Exception as error:
            yield None, _missing(error, "a part of the database is")
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
    _refuse_cut_off(head, Path(path).stat().st_size)
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


def _refuse_cut_off(head: bytes, size: int) -> None:
    """SQLite reads zeros where the last page of a file is missing."""
    page, pages = int.from_bytes(head[16:18], "big"), int.from_bytes(head[28:32], "big")
    page = 1 << 16 if page == 1 else page
    counted_now = head[24:28] == head[92:96]  # else the number of pages is not up to date
    if len(head) < 100 or (counted_now and page * pages > size):
        raise FrameError(f"it has {size:,} of {page * pages:,} bytes; {CUT_OFF}")


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
