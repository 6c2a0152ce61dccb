"""Molecules -> sharded LMDBs, for ``ndem data md17`` and ``ndem data qm9``.

The records have the fields of ``ndem data ase`` (``shards.to_data``); a molecule is not periodic,
has no fixed atoms, and all of it is adsorbate (tag 2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .convert import package_version
from .molecules import Molecules
from .parallel import check_stop, one_thread, run_tasks
from .positions import near_origin
from .shards import counted, write_metadata, write_records
from .staging import DATASET_FILE, SYSTEMS_FILE, write_json
from .statistics import Accumulator, Statistics

if TYPE_CHECKING:
    from torch_geometric.data import Data

_MIN_PER_SHARD = 1000
_MAX_SHARDS = 64


@dataclass(frozen=True)
class MoleculeShard:
    """One shard: its path and its rows of ``molecules``. Pickled for a worker process, it contains
    only these rows.

    Attributes:
        double: labels as (1,) float64 tensors; fairchem converts plain numbers to float32.
        statistics: compute statistics of the shard.
    """

    path: str
    molecules: Molecules
    rows: np.ndarray
    double: bool
    statistics: bool

    def __len__(self) -> int:
        return len(self.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        rows = np.arange(len(self.rows))
        own = self.molecules.take(self.rows)
        return MoleculeShard, (self.path, own, rows, self.double, self.statistics)


def to_data(molecules: Molecules, row: int, double: bool = False) -> Data:
    """The record of one molecule of N atoms.

    Returns:
        ``torch_geometric.data.Data`` with pos (N, 3) float32 A, cell (1, 3, 3) zeros, pbc (1, 3)
        false, atomic_numbers, fixed (0) and tags (2) (N,) int64, natoms, sid and fid (int), the
        labels (float; (1,) float64 with ``double``) and, if there are forces, force (N, 3) float32.
        No NumPy objects, whose pickles depend on the NumPy version.
    """
    import torch
    from torch_geometric.data import Data

    atoms = slice(int(molecules.offsets[row]), int(molecules.offsets[row + 1]))
    natoms = atoms.stop - atoms.start
    fields: dict[str, Any] = {}
    for name, values in molecules.labels.items():
        value = float(values[row])
        fields[name] = torch.tensor([value], dtype=torch.float64) if double else value
    if molecules.forces is not None:
        fields["force"] = torch.tensor(molecules.forces[atoms], dtype=torch.float32)
    positions = molecules.positions[atoms].astype(np.float64)
    positions = near_origin(positions, np.eye(3), np.zeros(3, dtype=bool))
    return Data(
        pos=torch.tensor(positions, dtype=torch.float32),
        cell=torch.zeros(1, 3, 3),
        pbc=torch.zeros(1, 3, dtype=torch.bool),
        atomic_numbers=torch.tensor(molecules.numbers[atoms].astype(np.int64)),
        natoms=natoms,
        fixed=torch.zeros(natoms, dtype=torch.long),
        tags=torch.full((natoms,), 2),
        sid=int(molecules.sid[row]),
        fid=int(molecules.fid[row]),
        **fields,
    )


def write_molecule_shard(task: MoleculeShard) -> Accumulator | None:
    """Write a shard; returns its sums if wanted. Runs in a worker process."""
    total = Accumulator() if task.statistics else None

    def records() -> Iterator[Data]:
        for row in task.rows:
            check_stop()
            yield to_data(task.molecules, row, task.double)

    made = records() if total is None else counted(records(), total)
    atoms = int(task.molecules.natoms[task.rows].sum())
    with one_thread():
        write_records(task.path, made, atoms, len(task))
    return total


def write_splits(
    directory: Path,
    molecules: Molecules,
    splits: Mapping[str, np.ndarray],
    *,
    double: bool = False,
    workers: int = 1,
    progress: bool = True,
) -> tuple[dict[str, dict[str, Any]], Statistics]:
    """Write the shards and metadata of all splits that have molecules.

    Args:
        directory: of the data set. molecules: all of them. splits: name -> rows, in record order.
        double: keep labels as float64 tensors. workers: processes; the result does not depend on
            it. progress: show a bar.

    Returns:
        Counts per split, and the statistics of ``train``.
    """
    tasks, counts = [], {}
    for split, rows in splits.items():
        if len(rows) == 0:
            continue
        target = directory / split
        target.mkdir()
        size = max(_MIN_PER_SHARD, -(-len(rows) // _MAX_SHARDS))
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        for number, part in enumerate(parts):
            path = str(target / f"data.{number:04d}.lmdb")
            tasks.append(MoleculeShard(path, molecules, part, double, split == "train"))
        natoms = molecules.natoms[rows]
        write_metadata(target, natoms, molecules.sid[rows], molecules.fid[rows])
        counts[split] = {
            "frames": len(rows),
            "systems": len(np.unique(molecules.sid[rows])),
            "atoms": int(natoms.sum()),
            "shards": len(parts),
            "elements": np.unique(molecules.take(rows).numbers).astype(int).tolist(),
        }
    sums = run_tasks(
        write_molecule_shard,
        tasks,
        workers=workers,
        describe="writing",
        size=len,
        progress=progress,
    )
    total = Accumulator()
    for part in sums:
        if part is not None:
            total.merge(part)
    statistics = total.result()
    assert statistics is not None  # a split without training molecules has been refused before
    return counts, statistics


def finish(
    directory: Path,
    entry: dict[str, Any],
    systems: dict[str, Any],
    what: str,
    units: Mapping[str, str],
) -> dict[str, Any]:
    """Write dataset.json and systems.json.

    Args:
        directory: of the data set. entry: of this conversion. systems: content of systems.json; if
            empty, it is not written.
        what: the format. units: of the fields.

    Returns:
        The entry with date and version, as in dataset.json.
    """
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    entry = {"created": created, "package_version": package_version(), **entry}
    if systems:
        write_json(directory / SYSTEMS_FILE, systems)
    content = {"format": what, "units": dict(units), "conversions": [entry]}
    write_json(directory / DATASET_FILE, content)
    return entry
