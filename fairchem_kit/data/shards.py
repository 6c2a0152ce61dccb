"""LMDB files of records in OC20's layout: writing them, and opening them safely."""

from __future__ import annotations

import io
import pickle
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DataError
from .reader.errors import Refused
from .reader.unpickle import load_fields, load_integer

if TYPE_CHECKING:
    import lmdb
    from torch_geometric.data import Data

METADATA_FILE = "metadata.npz"
_COMMIT_EVERY = 200
_PAGE = 4096


class _SameBytes(pickle.Pickler):
    """Pickles tensors without their memory address, which torch writes as the storage's name.

    So equal records have equal bytes, and a data set's hash depends only on its contents.
    """

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


def shard_paths(directory: Path) -> list[Path]:
    """The LMDB files of a split in the order in which fairchem reads them.

    Raises:
        DataError: there is none.
    """
    paths = sorted(directory.glob("*.lmdb"))
    if not paths:
        raise DataError(f"{directory}: no *.lmdb files; give the directory of one split")
    return paths


@contextmanager
def open_shard(path: str | Path) -> Iterator[lmdb.Environment]:
    """Open an LMDB file for reading, after checking that it is not truncated.

    LMDB maps the file into memory: reading a page that a truncated file lacks would kill the
    process with SIGBUS instead of raising.

    Raises:
        DataError: not an LMDB file, or truncated.
    """
    import lmdb

    path = Path(path)
    try:
        env = lmdb.open(
            str(path), subdir=False, readonly=True, lock=False, readahead=False, max_readers=1
        )
    except lmdb.Error as error:
        if "already open" in str(error):
            reason = "a data set object has it open in this process; close that first"
        else:
            reason = f"not a readable LMDB file ({error}); copy it again"
        raise DataError(f"{path}: {reason}") from None
    try:
        needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
        size = path.stat().st_size
        if size < needed:
            raise DataError(
                f"{path}: truncated, {size} of {needed} bytes; copy or convert it again "
                "(reading it would kill the process)"
            )
        yield env
    finally:
        env.close()


def load_record(raw: bytes | None) -> dict[str, Any]:
    """The fields of a pickled record, written by any PyG version.

    Raises:
        DataError: missing or not a pickled PyG Data; the message is only the reason.
    """
    try:
        return load_fields(raw)
    except Refused as error:
        raise DataError(error.reason) from None


def iter_records(
    env: lmdb.Environment, start: int, stop: int
) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    """Records ``start`` to ``stop - 1`` of an open shard.

    Yields:
        ``(number, fields)``, or ``(number, DataError)`` for one that is missing or damaged.
    """
    import lmdb

    for number in range(start, stop):
        try:
            with env.begin() as transaction:  # one for each record: an error ends the transaction
                raw = transaction.get(str(number).encode("ascii"))
            result: dict[str, Any] | DataError = load_record(raw)
        except DataError as error:
            result = error
        except lmdb.Error as error:
            result = DataError(f"damaged file ({error})")
        yield number, result


def record_count(env: lmdb.Environment) -> int:
    """The number of records that fairchem reads from a shard: "length", else the number of keys.

    Raises:
        DataError: "length" is not a whole number.
    """
    try:
        with env.begin() as transaction:
            raw = transaction.get(b"length")
        if raw is None:
            return int(env.stat()["entries"])
        return load_integer(raw)
    except Refused as error:
        raise DataError(f"{env.path()}: its `length` cannot be read ({error.reason})") from None
