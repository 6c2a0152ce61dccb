"""Reading files of records of either generation: S2EF LMDBs, and ``*.aselmdb`` of fairchem 2.

A record of the latter is what the package ase-db-backends writes: a row of an ASE database as
compressed JSON, under its number. It is read page by page as S2EF files are (``reader.pages``),
and no code in it is run.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .positions import near_origin
from .reader.errors import Refused
from .reader.keys import map_keys
from .reader.pages import LmdbFile
from .reader.unpickle import load_fields

SUFFIX = ".aselmdb"
SETTINGS_FILE = "fairchem2.yaml"
_MAX_JSON = 1 << 30


def is_aselmdb(path: str | Path) -> bool:
    """Whether a file is one of fairchem 2, by its name."""
    return str(path).endswith(SUFFIX)


def is_fairchem2(path: Path) -> bool:
    """Whether a split, or a file of one, is for fairchem 2."""
    return is_aselmdb(path) or any(path.glob(f"*{SUFFIX}"))


def record_files(directory: Path) -> list[Path]:
    """The files of a split, of either generation, in the order in which fairchem reads them.

    Raises:
        DataError: none, or both kinds in one directory.
    """
    found = {kind: sorted(directory.glob(f"*{kind}")) for kind in (".lmdb", SUFFIX)}
    if all(found.values()):
        raise DataError(
            f"{directory} has *.lmdb files (fairchem 1.10) and *{SUFFIX} files (fairchem 2): keep "
            "them in separate directories"
        )
    paths = found[".lmdb"] or found[SUFFIX]
    if not paths:
        raise DataError(
            f"{directory}: no *.lmdb or *{SUFFIX} files; name the directory of one split"
        )
    return paths


class RecordFile:
    """One file of records of either generation, opened for reading.

    Args:
        path: ``*.aselmdb``, or any other name for an S2EF LMDB.

    Attributes:
        count: records, numbered from 0. problems: what is wrong with the file's keys, as kind and
            message of each.

    Raises:
        Refused: not a readable file.
        OSError: it cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = LmdbFile(path)
        self._rows: list[int] | None = None
        self.problems: list[tuple[str, str]] = []
        if is_aselmdb(path):
            self._rows = _row_numbers(self._file)
            self.count = len(self._rows)
        else:
            keys = map_keys(self._file)
            self.count, self.problems = keys.count, keys.problems

    def fields(self, number: int) -> dict[str, Any]:
        """The fields of a record by the names of S2EF records.

        Raises:
            DataError: missing or damaged; the message is the reason alone.
        """
        try:
            if self._rows is None:
                return load_fields(self._file.get(b"%d" % number))
            return fields_of_row(self._file.get(b"%d" % self._rows[number]), number)
        except (Refused, OSError) as error:
            raise DataError(str(error)) from None

    def get(self, key: bytes) -> bytes | None:
        """The value of a key."""
        return self._file.get(key)

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _row_numbers(file: LmdbFile) -> list[int]:
    following = _decoded(file.get(b"nextid"), "nextid") or 1
    deleted = _decoded(file.get(b"deleted_ids"), "deleted_ids") or []
    if (
        not isinstance(following, int)
        or not 0 < following < 1 << 40
        or not isinstance(deleted, list)
    ):
        raise Refused("keys", "its `nextid` or `deleted_ids` is not what ASE writes")
    gone = set(map(int, deleted))
    # rows are numbered 1 ... nextid - 1; more than the file has keys would be made up
    rows = [n for n in range(1, min(following, file.meta.entries + len(gone) + 1)) if n not in gone]
    return rows


def fields_of_row(raw: bytes | None, number: int) -> dict[str, Any]:
    """A row as the fields of an S2EF record; sid and fid from ``data``, else its number.

    Raises:
        Refused: missing, or not a row of an ASE database.
    """
    row = _decoded(raw, "row")
    if not isinstance(row, dict) or "numbers" not in row or "positions" not in row:
        raise Refused("record", "missing" if raw is None else "not a row of an ASE database")
    try:
        return _fields(row, number)
    except (KeyError, TypeError, ValueError) as error:
        raise Refused("record", f"not a row of an ASE database ({error!r})") from None


def _fields(row: dict[str, Any], number: int) -> dict[str, Any]:
    data = row.get("data") if isinstance(row.get("data"), dict) else {}
    numbers = np.asarray(row["numbers"], dtype=np.int64).reshape(-1)
    count = len(numbers)
    pbc = np.asarray(row.get("pbc", np.zeros(3)), dtype=bool).reshape(1, 3)
    cell = _complete(np.asarray(row.get("cell", np.zeros((3, 3))), dtype=np.float64).reshape(3, 3))
    positions = np.asarray(row["positions"], dtype=np.float64).reshape(-1, 3)
    if np.isfinite(positions).all():
        positions = near_origin(positions, cell, pbc[0])
    fields: dict[str, Any] = {
        "pos": positions.astype(np.float32),
        "cell": cell.astype(np.float32).reshape(1, 3, 3),
        "pbc": pbc,
        "atomic_numbers": numbers,
        "natoms": np.int64(count),
        "fixed": _fixed(row.get("constraints"), count),
        "tags": np.asarray(row.get("tags", np.zeros(count)), dtype=np.int64).reshape(-1),
        "sid": _number(data.get("sid", number)),
        "fid": data.get("fid", number),
    }
    energy, forces = data.get("energy", row.get("energy")), data.get("forces", row.get("forces"))
    if energy is not None:
        fields["y"] = float(energy)
    if forces is not None:
        fields["force"] = np.asarray(forces, dtype=np.float32).reshape(-1, 3)
    return fields


def _number(sid: Any) -> Any:
    """A system's number as one, other names as they are."""
    return int(sid) if isinstance(sid, str) and sid.isdigit() else sid


def _complete(cell: np.ndarray) -> np.ndarray:
    """Unit vectors for missing lattice vectors, as fairchem reads a structure."""
    if cell.any(axis=1).all() or not np.isfinite(cell).all():
        return cell
    from ase.cell import Cell

    return np.array(Cell(cell).complete())


def _fixed(constraints: Any, count: int) -> np.ndarray:
    fixed = np.zeros(count, dtype=np.int64)
    for constraint in constraints or []:
        if constraint.get("name") == "FixAtoms":
            fixed[np.asarray(constraint["kwargs"]["indices"], dtype=np.int64)] = 1
    return fixed


def _decoded(raw: bytes | None, what: str) -> Any:
    """ASE's compressed JSON; arrays as arrays, ASE's other objects as dictionaries."""
    if raw is None:
        return None
    try:
        unpacking = zlib.decompressobj()
        text = unpacking.decompress(raw, _MAX_JSON)
        if not unpacking.eof:
            raise ValueError("incomplete, or larger than 1 GiB")
        return json.loads(text, object_hook=_object)
    except (UnicodeDecodeError, ValueError, RecursionError, zlib.error) as error:
        raise Refused("record", f"its {what} cannot be read ({error})") from None


def _object(found: dict[str, Any]) -> Any:
    if "__ndarray__" not in found:
        return found
    shape, kind, values = found["__ndarray__"]
    return np.array(values, dtype=np.dtype(kind) if kind != "object" else None).reshape(shape)


def iter_fields(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of one file of either generation.

    Raises:
        DataError: naming file and record.
    """
    try:
        with RecordFile(path) as file:
            for number in range(file.count):
                try:
                    yield number, file.fields(number)
                except DataError as error:
                    raise DataError(
                        f"{path}: record {number}: {error}; `ndem data check` lists all such "
                        "records"
                    ) from None
    except (Refused, OSError) as error:
        raise DataError(f"{path}: {error}") from None
