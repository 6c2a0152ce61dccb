"""Writing LMDB files of records: S2EF for fairchem 1.10, and ASE databases for fairchem 2.

The latter (``*.aselmdb``) are what the package ase-db-backends reads. Equal records are equal
bytes in both, so a data set's hash depends on its contents only.
"""

from __future__ import annotations

import io
import pickle
import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DataError
from .stream import Record

if TYPE_CHECKING:
    from torch_geometric.data import Data

METADATA_FILE = "metadata.npz"
_COMMIT_EVERY = 200
_PAGE = 4096


class _SameBytes(pickle.Pickler):
    """Pickles tensors without their memory address, which torch writes as the storage's name."""

    def reducer_override(self, value: Any) -> Any:
        import torch

        if not isinstance(value, torch.storage.TypedStorage):
            return NotImplemented
        rebuild, (content,) = value.__reduce__()
        name = str(value._untyped_storage._cdata).encode("ascii")
        there = b"X" + len(name).to_bytes(4, "little") + name
        return rebuild, (content.replace(there, b"X\x01\x00\x00\x000", 2),)  # then come numbers


def _pickled(record: Any) -> bytes:
    stream = io.BytesIO()
    _SameBytes(stream, protocol=4).dump(record)
    return stream.getvalue()


def write_records(path: str | Path, records: Iterable[Data], atoms: int, count: int) -> int:
    """Write one LMDB file with keys "0".."n-1" and "length".

    Args:
        path: the file. records: what to write.
        atoms, count: total atoms and records, for the size of the map.

    Returns:
        The number of records written.

    Raises:
        DataError: a disk error.
    """

    def items() -> Iterator[tuple[bytes, bytes]]:
        number = -1
        for number, record in enumerate(records):
            yield b"%d" % number, _pickled(record)
        yield b"length", pickle.dumps(number + 1, protocol=4)

    return write_lmdb(path, items(), count * 2 * _PAGE + atoms * 128) - 1


def write_lmdb(path: str | Path, items: Iterable[tuple[bytes, bytes]], size: int) -> int:
    """Write keys and values to a new LMDB file; returns their number.

    Args:
        path: the file. items: keys and values. size: about what they need, in bytes.

    Raises:
        DataError: a disk error.
    """
    import lmdb

    count = 0
    try:
        with lmdb.open(
            str(path), map_size=64 * 1024**2 + 4 * size, subdir=False, lock=False
        ) as env:
            transaction = env.begin(write=True)
            for count, (key, value) in enumerate(items, start=1):
                transaction.put(key, value)
                if count % _COMMIT_EVERY == 0:
                    transaction.commit()
                    transaction = env.begin(write=True)
            transaction.commit()
            env.sync(True)
    except lmdb.Error as error:
        free = shutil.disk_usage(Path(path).parent).free / 1e6  # LMDB reports a full disk as EIO
        raise DataError(
            f"{path}: cannot be written ({error}; {free:.1f} MB are free there); nothing was "
            "written"
        ) from None
    return count


def write_metadata(directory: Path, natoms: np.ndarray, sid: np.ndarray, fid: np.ndarray) -> None:
    """Write metadata.npz: arrays (n,) in the order in which fairchem reads the shards."""
    arrays = {"natoms": natoms.astype(np.int32), "sid": sid, "fid": fid}
    np.savez(directory / METADATA_FILE, **arrays)


def row_of(record: Record) -> dict[str, Any]:
    """The row of an ASE database for a record with ``y`` and ``force``."""
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.constraints import FixAtoms
    from ase.db.row import AtomsRow

    atoms = Atoms(
        record.numbers,
        positions=record.near,
        cell=record.cell,
        pbc=record.pbc,
        tags=record.tags,
        constraint=FixAtoms(mask=record.fixed != 0),
    )
    forces = record.vectors["force"].astype(np.float32).astype(np.float64)  # as in other records
    energy = float(record.labels["y"])
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    row = AtomsRow(atoms)
    skipped = {"id", *row._keys}
    content = {k: row[k] for k in vars(row) if not k.startswith("_") and k not in skipped}
    content["cell"] = np.asarray(content["cell"])
    content["constraints"] = [constraint.todict() for constraint in atoms.constraints]
    fixed = {"ctime": 0.0, "mtime": 0.0, "user": "", "unique_id": "0" * 32}
    data = {"sid": int(record.sid), "fid": int(record.fid)}
    return {**content, **fixed, "key_value_pairs": {}, "data": data}


def write_rows(path: str | Path, rows: Iterable[dict[str, Any]], atoms: int, count: int) -> int:
    """Write one ``*.aselmdb`` file; returns the number of rows.

    Args:
        path: the file. rows: of :func:`row_of`. atoms, count: in all, for the size of the map.

    Raises:
        DataError: a disk error.
    """

    def items() -> Iterator[tuple[bytes, bytes]]:
        number = 0
        for number, row in enumerate(rows, start=1):
            yield b"%d" % number, _encoded(row)
        yield b"nextid", _encoded(number + 1)

    return write_lmdb(path, items(), count * 8192 + atoms * 512) - 1


def _encoded(content: Any) -> bytes:
    from ase.io.jsonio import encode

    return zlib.compress(encode(content).encode("utf-8"))
