"""The writer of all data sets: shards of records, metadata and what dataset.json says about them.

A source of data gives a :class:`DataSet`; :func:`write` puts it in place when it is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .accumulator import Accumulator
from .lmdb_writer import row_of, write_metadata, write_records, write_rows
from .parallel import check_stop, one_thread, run_tasks
from .staging import DATASET_FILE, SYSTEMS_FILE, staging, write_json
from .stream import Record, Records
from .units import DEFAULT

if TYPE_CHECKING:
    from torch_geometric.data import Data

#: suffix of a file of records -> what dataset.json calls it
FORMATS = {"lmdb": "OC20 S2EF LMDB", "aselmdb": "ASE LMDB"}
_MAX_SHARDS = 64
_MIN_PER_SHARD = 1000


@dataclass(frozen=True)
class DataSet:
    """A data set before it is written.

    Attributes:
        records: all of them. splits: name -> rows of ``records``, in the order in the files; empty
            splits are left out.
        entry: of this conversion for dataset.json. systems: content of systems.json, which is not
            written if empty.
        form: a key of FORMATS. described: the format in dataset.json; None: that of ``form``.
            units: of the fields.
        per_shard: records per file; None: 1000, more for large splits, of at most 64 files each.
        measured: the splits whose statistics are computed; None: all.
        only: name of the only split to write or replace, in a data set whose dataset.json has
            ``before``. None: the whole data set.
        finish: called with the folder and ``{split: statistics}``, to write further files.
    """

    records: Records
    splits: Mapping[str, np.ndarray]
    entry: Mapping[str, Any]
    systems: Mapping[str, Any] = field(default_factory=dict)
    form: str = "lmdb"
    described: str | None = None
    units: Mapping[str, str] = field(default_factory=lambda: DEFAULT)
    per_shard: int | None = None
    measured: tuple[str, ...] | None = None
    only: str | None = None
    before: Mapping[str, Any] = field(default_factory=dict)
    finish: Callable[[Path, dict[str, Any]], None] = lambda folder, statistics: None


@dataclass(frozen=True)
class Shard:
    """One file to write: its path and its records, ``rows`` of ``records`` (None: all).

    Pickled for a worker process, it contains only these. ``measured``: compute statistics.
    """

    path: str
    records: Records
    rows: np.ndarray | None
    measured: bool

    def __len__(self) -> int:
        return len(self.records.natoms if self.rows is None else self.rows)

    def own(self) -> Records:
        """The records of this file."""
        return self.records if self.rows is None else self.records.part(self.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return Shard, (self.path, self.own(), None, self.measured)


def write(out: Path, made: DataSet, *, workers: int = 1, progress: bool = True) -> dict[str, Any]:
    """Write a data set under a temporary name and move it to ``out``. Call it under
    ``lock.only_writer``, after ``staging.check_target``.

    Args:
        out: the folder. made: what to write. workers: processes; the result does not depend on it.
        progress: show a bar.

    Returns:
        This conversion's entry in dataset.json.

    Raises:
        DataError: a source that changed meanwhile, or a disk error. Nothing is left behind then.
    """
    with staging(out, made.only) as folder:
        counts, statistics = write_splits(folder, made, workers=workers, progress=progress)
        entry = {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "package_version": package_version(),
            "splits": counts,
            **made.entry,
            "statistics": statistics,
        }
        if made.systems:
            write_json(folder / SYSTEMS_FILE, dict(made.systems))
        content = {
            "format": made.described or FORMATS[made.form],
            "units": dict(made.units),
            "conversions": [*_remaining(made.before, counts), entry],
        }
        write_json(folder / DATASET_FILE, content)
        made.finish(folder, statistics)
    return entry


def _remaining(before: Mapping[str, Any], made: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The older conversions without the splits that are replaced."""
    for conversion in before.get("conversions", []):
        splits = {k: v for k, v in conversion["splits"].items() if k not in made}
        if splits:
            yield {**conversion, "splits": splits}


def write_splits(
    folder: Path, made: DataSet, *, workers: int = 1, progress: bool = True
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Write the shards and metadata of all splits into ``folder``; their counts and statistics."""
    records, shards, counts = made.records, [], {}
    for split, rows in made.splits.items():
        if len(rows) == 0:
            continue
        target = folder / split
        target.mkdir(exist_ok=True)
        size = made.per_shard or max(_MIN_PER_SHARD, -(-len(rows) // _MAX_SHARDS))
        measured = made.measured is None or split in made.measured
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        for number, part in enumerate(parts):
            path = str(target / f"data.{number:04d}.{made.form}")
            shards.append(Shard(path, records, part, measured))
        natoms, sid = records.natoms[rows], records.sid[rows]
        write_metadata(target, natoms, sid, records.fid[rows])
        counts[split] = {
            "frames": len(rows),
            "systems": len(np.unique(sid)),
            "atoms": int(natoms.sum()),
            "shards": len(parts),
            "elements": list(records.elements(rows)),
        }
    sums = run_tasks(
        write_shard, shards, workers=workers, describe="writing", size=len, progress=progress
    )
    totals: dict[str, Accumulator] = {}
    for shard, part in zip(shards, sums):
        if part is not None:
            totals.setdefault(Path(shard.path).parent.name, Accumulator()).merge(part)
    return counts, {split: total.result().as_dict() for split, total in totals.items()}


def write_shard(shard: Shard) -> Accumulator | None:
    """Read the records of a shard and write it; returns the sums over them, if wanted. Runs in a
    worker process."""
    total = Accumulator() if shard.measured else None
    records = shard.own()
    atoms, count = int(records.natoms.sum()), len(shard)
    with one_thread():
        if Path(shard.path).suffix == ".aselmdb":
            rows = (row_of(record) for record, _ in _read(records, total))
            write_rows(shard.path, rows, atoms, count)
        else:
            write_records(shard.path, (data for _, data in _read(records, total)), atoms, count)
    return total


def _read(records: Records, total: Accumulator | None) -> Iterator[tuple[Record, Data]]:
    """Each record, also as fairchem 1.10 has it, which is what is counted in ``total``."""
    previous = None
    for record in records:
        check_stop()
        data = record.data()
        if total is not None:
            fields = data.to_dict()
            total.add(fields, previous)
            previous = fields
        yield record, data


def package_version() -> str:
    """The installed version of this package."""
    try:
        return version("ndem_ocp")
    except PackageNotFoundError:
        return "not installed"
