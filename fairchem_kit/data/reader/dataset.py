"""The data set: ``format: ndem_lmdb``."""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections import Counter
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from fairchem.core.common.registry import registry
from fairchem.core.datasets._utils import rename_data_object_keys
from fairchem.core.datasets.base_dataset import BaseDataset
from fairchem.core.modules.transforms import DataTransforms
from torch_geometric.data import Data

from fairchem_kit.data.errors import DataError
from fairchem_kit.npz import check_npz
from fairchem_kit.words import counted

from .checks import check_fields
from .errors import RecordError, Refused, TooManyBadRecords
from .kept import KeptRecords
from .keys import Keys, map_keys
from .pages import LmdbFile
from .settings import ReaderSettings
from .skips import Skips
from .unpickle import load_fields
from .usual import usual_fields

_WAY_OUT = (
    "`ndem data check` lists all such records; dataset.on_bad_record: skip replaces each by the "
    "next good one"
)
# a disk error may be temporary: it is never skipped, or a resumed run could differ
_NOT_READ = "not read"


def _disk(error: OSError) -> str:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files (ulimit -n), or use fewer and larger LMDB files"
    return "check the disk and its permissions, then resume"


@registry.register_dataset("ndem_lmdb")
class LmdbReader(BaseDataset):
    """S2EF records from one LMDB file or from the ``*.lmdb`` files of a directory.

    Records, ids, ``key_mapping``, ``transforms``, ``shard``/``total_shards`` and ``metadata.npz``
    are those of fairchem's ``format: lmdb``. Files are opened when a process first reads from them.

    Args:
        config: a dataset section; see :class:`ReaderSettings` for the reader's own keys.

    Raises:
        DataError: nothing to read at ``src``, or a wrong key.
        RecordError: a damaged file, or keys that are not a numbering.
    """

    # keys of a dataset section in addition to BaseDataset's
    known_keys = (*ReaderSettings.keys(), "shard", "total_shards", "train_on_oc20_total_energies")

    def __init__(self, config: dict[str, Any]) -> None:
        if config.get("lin_ref"):
            check_npz(config["lin_ref"], DataError)  # fairchem would run code in it
        super().__init__(config)
        self.settings = ReaderSettings.from_config(config)
        if config.get("train_on_oc20_total_energies"):
            raise DataError("dataset.train_on_oc20_total_energies needs dataset.format: oc22_lmdb")
        if len(self.paths) != 1:
            raise DataError(f"dataset.src: one file or directory is read, not {len(self.paths)}")
        self.path = self.paths[0]
        self._in_directory = not self.path.is_file()
        self._files: dict[int, LmdbFile] = {}
        self._skips = Skips(self.settings.max_bad_records, self.settings.bad_records_log)
        self._stamps: list[
            tuple[int, int]
        ] = []  # of the files, at the time their records were numbered
        self._shards = [self._map(path) for path in self._find_files()]
        self._ends = list(accumulate(keys.count for keys in self._shards))
        self._kept = KeptRecords(self._file_size)
        self.num_samples = self._ends[-1]
        if self.num_samples == 0:
            raise DataError(f"{self.path}: no records")
        self.key_mapping = config.get("key_mapping")
        self.transforms = DataTransforms(config.get("transforms", {}))
        self.sharded = "shard" in config and "total_shards" in config
        if self.sharded:
            parts = np.array_split(np.arange(self.num_samples), config["total_shards"])
            self.indices = parts[config["shard"]]
            self.num_samples = len(self.indices)

    @cached_property
    def _metadata(self) -> dict[str, Any]:
        for path in self._metadata_files():
            check_npz(path, DataError)
        try:
            return BaseDataset._metadata.func(self)
        except AssertionError as error:
            raise DataError(
                f"{self.path}: metadata.npz does not fit its {counted(len(self), 'record')} "
                f"({error}); write it again with fairchem's make_lmdb_sizes"
            ) from None

    def _metadata_files(self) -> list[Path]:
        """The files from which fairchem reads metadata, with pickle allowed."""
        if self.config.get("metadata_path") is not None:
            return [Path(self.config["metadata_path"])]
        folder = self.path if self._in_directory else self.path.parent
        return [path for path in [folder / "metadata.npz"] if path.is_file()]

    @property
    def bad_records(self) -> Counter[str]:
        """Number of bad records of each kind that this process has skipped."""
        return Counter(self._skips.kinds)

    def __getitem__(self, idx: int) -> Data:
        """One record.

        Raises:
            IndexError: there is no such position.
            RecordError: it is bad (``on_bad_record: raise``), or there are too many bad ones
                (:class:`TooManyBadRecords`).
        """
        position = int(idx)
        if not -self.num_samples <= position < self.num_samples:
            raise IndexError(f"{self.path}: position {position} of {self.num_samples}")
        position %= self.num_samples
        if self.settings.on_bad_record == "raise":
            return self._read(position)
        return self._read(self._skips.standins.get(position, position), standin_for=position)

    def _read(self, position: int, standin_for: int | None = None) -> Data:
        try:
            return self._record(position)
        except RecordError as error:
            if standin_for is None or error.kind == _NOT_READ:
                raise
            self._skips.add(position, error)
        return self._next_good(standin_for)

    def _next_good(self, bad: int) -> Data:
        """The first good record after a bad one, continuing at the first record after the last. It
        is the same in every process and run, so that batches, samplers and resumed runs agree."""
        for step in range(1, self.num_samples):
            position = (bad + step) % self.num_samples
            try:
                data = self._record(position)
            except RecordError as error:
                if error.kind == _NOT_READ:
                    raise
                self._skips.add(position, error)
                continue
            if int(data.natoms) <= (self.config.get("max_atoms") or np.inf):
                self._skips.standins[bad] = position
                return data
        raise TooManyBadRecords(f"{self.path}: it has no good record")

    def _record(self, position: int) -> Data:
        """The record at a position, checked, transformed and with its keys renamed."""
        number = int(self.indices[position]) if self.sharded else position
        shard = bisect_right(self._ends, number)
        inside = number - (self._ends[shard - 1] if shard else 0)
        data = self._kept.get(number)
        if data is None:
            data = self._decode(number, shard, inside)
        data = self.transforms(data)
        if self.key_mapping is not None:
            data = self._rename(data, shard, inside)
        return data

    def _decode(self, number: int, shard: int, inside: int) -> Data:
        """The record as it is in the file, checked."""
        try:
            stored = self._file(shard).get(b"%d" % inside)
            fields = load_fields(stored)
            check_fields(fields, self.settings)
            fields = usual_fields(fields)
        except (Refused, OSError) as error:
            raise self._error(shard, inside, error) from None
        data = Data()
        for key, value in fields.items():
            data[key] = value
        if self._in_directory:
            data.id = f"{shard}_{inside}"
        self._kept.keep(number, data, len(stored or b""))
        return data

    def _rename(self, data: Data, shard: int, inside: int) -> Data:
        try:
            return rename_data_object_keys(data, self.key_mapping)
        except AssertionError:
            reason = f"dataset.key_mapping {dict(self.key_mapping)}: a new name already exists"
            raise self._error(shard, inside, Refused("key_mapping", reason)) from None

    def _error(self, shard: int, inside: int, error: Refused | OSError) -> RecordError:
        path = self._shards[shard].path
        if isinstance(error, Refused):
            kind, reason, advice = error.kind, error.reason, _WAY_OUT
        else:
            kind, reason, advice = _NOT_READ, f"cannot be read ({error})", _disk(error)
        message = f"{path}: record {inside}: {reason}; {advice}"
        return RecordError(message, file=path, key=str(inside), kind=kind, reason=reason)

    def _find_files(self) -> list[Path]:
        if not self._in_directory:
            return [self.path]
        if not self.path.exists():
            raise DataError(f"dataset.src = {str(self.path)!r}: no such file or directory")
        paths = sorted(self.path.glob("*.lmdb"))
        if not paths:
            raise DataError(f"dataset.src = {str(self.path)!r}: no *.lmdb files in it")
        return paths

    def _map(self, path: Path) -> Keys:
        """The records of a file; faults of the whole file are always raised."""
        try:
            with LmdbFile(path) as file:
                keys = map_keys(file)
                self._stamps.append(file.stamp)
        except (Refused, OSError) as error:
            kind, reason = getattr(error, "kind", _NOT_READ), str(error)
            if isinstance(error, OSError):
                reason = f"cannot be opened ({error}); {_disk(error)}"
            message = f"{path}: {reason}"
            raise RecordError(message, file=str(path), kind=kind, reason=reason) from None
        if keys.problems and self.settings.on_bad_record == "raise":
            reason = "; ".join(problem for _, problem in keys.problems)
            message = (
                f"{path}: {reason}. The existing records can be used with "
                "dataset.on_bad_record: skip; or convert the file again"
            )
            raise RecordError(message, file=str(path), kind="keys", reason=reason)
        for _, problem in keys.problems:
            self._skips.note(str(path), problem)
        return keys

    def _file(self, shard: int) -> LmdbFile:
        file = self._files.get(shard)
        if file is None:
            file = LmdbFile(self._shards[shard].path)
            if file.stamp != self._stamps[shard]:  # for example by a conversion with --overwrite
                file.close()
                reason = (
                    "the file was replaced or changed while it was in use: the records that were "
                    "read before may belong to other data; start again"
                )
                message = f"{file.path}: {reason}"
                raise RecordError(message, file=file.path, kind=_NOT_READ, reason=reason)
            self._files[shard] = file
        return file

    def __getstate__(self) -> dict[str, Any]:
        """State for a spawned worker, which opens the files itself."""
        return {**self.__dict__, "_files": {}, "_kept": KeptRecords(self._file_size)}

    @property
    def _file_size(self) -> int:
        return sum(size for size, _ in self._stamps)
