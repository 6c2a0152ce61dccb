"""LMDB shards in OC20's S2EF layout: writing them, and opening them safely."""

from __future__ import annotations

import io
import pickle
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .accumulator import Accumulator
from .ase_files import iter_frames
from .aselmdb import is_aselmdb
from .aselmdb_writer import row_of, write_rows
from .errors import DataError
from .frames import Frame, LabelOptions, read_frame
from .parallel import check_stop, one_thread
from .positions import near_origin
from .reader.errors import Refused
from .reader.unpickle import load_fields, load_integer
from .sources import Source

if TYPE_CHECKING:
    import lmdb
    from torch_geometric.data import Data

METADATA_FILE = "metadata.npz"
_COMMIT_EVERY = 200
_PAGE = 4096


@dataclass(frozen=True)
class Segment:
    """Frames of one source in a shard.

    Attributes:
        source: the file. frames: (n,) increasing frame numbers. sids: (n,) system numbers.
        references: (n,) eV, subtracted from the energies.
    """

    source: Source
    frames: np.ndarray
    sids: np.ndarray
    references: np.ndarray


@dataclass(frozen=True)
class ShardTask:
    """One shard to write: its path, its frames, and their total number of atoms."""

    path: str
    segments: tuple[Segment, ...]
    atoms: int
    options: LabelOptions

    def __len__(self) -> int:
        return sum(len(segment.frames) for segment in self.segments)


def structure_of(frame: Frame) -> dict[str, Any]:
    """The fields of a record that describe the structure; :func:`to_data` has shapes and units."""
    import torch

    positions = near_origin(frame.positions, frame.cell, frame.pbc)
    return {
        "pos": torch.tensor(positions, dtype=torch.float32),
        "cell": torch.tensor(frame.cell, dtype=torch.float32).view(1, 3, 3),
        "pbc": torch.tensor(frame.pbc, dtype=torch.bool).view(1, 3),
        "atomic_numbers": torch.tensor(frame.numbers, dtype=torch.long),
        "natoms": len(frame.numbers),
        "fixed": torch.tensor(frame.fixed, dtype=torch.long),
        "tags": torch.tensor(frame.tags, dtype=torch.long),
    }


def to_data(frame: Frame, *, energy: float, sid: int, fid: int) -> Data:
    """The record of one frame.

    Args:
        frame: the structure with N atoms. energy: the (referenced) energy, eV.
        sid: number of the system. fid: number of the frame in its source.

    Returns:
        ``torch_geometric.data.Data`` with y (float, eV), force (N, 3) float32 eV/A, pos (N, 3)
        float32 A, cell (1, 3, 3) float32 A, pbc (1, 3) bool, atomic_numbers, fixed and tags (N,)
        int64, natoms, sid and fid (int). Tensors only: no NumPy objects, whose pickles depend on
        the NumPy version.
    """
    import torch
    from torch_geometric.data import Data

    return Data(
        y=float(energy),
        force=torch.tensor(frame.forces, dtype=torch.float32),
        **structure_of(frame),
        sid=int(sid),
        fid=int(fid),
    )


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
    import lmdb

    map_size = 64 * 1024**2 + 4 * (count * 2 * _PAGE + atoms * 128)
    try:
        with lmdb.open(str(path), map_size=map_size, subdir=False, lock=False) as env:
            number = 0
            transaction = env.begin(write=True)
            for record in records:
                transaction.put(str(number).encode("ascii"), _pickled(record))
                number += 1
                if number % _COMMIT_EVERY == 0:
                    transaction.commit()
                    transaction = env.begin(write=True)
            transaction.put(b"length", pickle.dumps(number, protocol=4))
            transaction.commit()
            env.sync(True)
    except lmdb.Error as error:
        free = shutil.disk_usage(Path(path).parent).free / 1e6  # LMDB reports a full disk as EIO
        raise DataError(
            f"{path}: cannot be written ({error}; {free:.1f} MB are free there); nothing was "
            "written"
        ) from None
    return number


def write_shard(task: ShardTask) -> Accumulator:
    """Read the frames of a task again and write its shard; returns the sums over its records. Runs
    in a worker process."""
    total = Accumulator()
    with one_thread():
        if is_aselmdb(task.path):
            write_rows(task.path, _rows(task, total), task.atoms, len(task))
        else:
            records = (record for record, _ in _records(task))
            write_records(task.path, counted(records, total), task.atoms, len(task))
    return total


def _rows(task: ShardTask, total: Accumulator) -> Iterator[dict[str, Any]]:
    """Rows for fairchem 2; what is counted is what an S2EF record of the frame would hold."""
    frames: list[Frame] = []

    def records() -> Iterator[Data]:
        for record, frame in _records(task):
            frames.append(frame)
            yield record

    for record in counted(records(), total):
        frame = frames.pop()
        yield row_of(
            record.to_dict(), near_origin(frame.positions, frame.cell, frame.pbc), frame.cell
        )


def counted(records: Iterable[Data], total: Accumulator) -> Iterator[Data]:
    """Yield the same records and add each to ``total``."""
    previous = None
    for record in records:
        fields = record.to_dict()
        total.add(fields, previous)
        previous = fields
        yield record


def _records(task: ShardTask) -> Iterator[tuple[Data, Frame]]:
    for segment in task.segments:
        position = 0
        for index, atoms in iter_frames(segment.source, segment.frames):
            check_stop()
            if isinstance(atoms, Exception) or index != segment.frames[position]:
                raise DataError(f"{segment.source.path} changed while it was converted")
            frame = read_frame(atoms, task.options)
            energy = frame.energy - float(segment.references[position])
            yield to_data(frame, energy=energy, sid=segment.sids[position], fid=index), frame
            position += 1
        if position != len(segment.frames):
            raise DataError(f"{segment.source.path} changed while it was converted")


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
