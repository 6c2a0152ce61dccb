"""Opening LMDB files of records in OC20's layout safely."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DataError
from .reader.errors import Refused
from .reader.unpickle import load_fields, load_integer

if TYPE_CHECKING:
    import lmdb


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
