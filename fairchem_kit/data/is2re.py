"""IS2RE data: initial structures with their relaxed structures and energies.

One record per relaxation, in the layout of OC20's IS2RE LMDBs. fairchem's ``--mode
run-relaxations`` and ``ndem relax`` start from these records and compare with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .convert import package_version
from .errors import DataError
from .frames import LabelOptions
from .lock import one_writer
from .positions import near_cell, near_origin
from .reference import load_linear
from .relaxation_files import RISE, Relaxation, read_relaxations
from .shards import structure_of, write_metadata, write_records
from .sources import Source
from .staging import DATASET_FILE, SYSTEMS_FILE, check_target, staging, write_json

if TYPE_CHECKING:
    from torch_geometric.data import Data

#: what the ``relax`` section of a configuration needs in addition to ``src``
KEY_MAPPING = {"y_relaxed": "energy_relaxed"}
_RELAXED = 0.05  # eV/A; OC20's relaxations end at 0.03


def to_record(relaxation: Relaxation, sid: int, reference: float) -> Data:
    """The record of one relaxation.

    Args:
        relaxation: its first and last frame. sid: its number. reference: eV, subtracted from the
            energies.

    Returns:
        ``Data`` with pos (N, 3) float32 A, the initial positions; pos_relaxed (N, 3) float32 A;
        y_init and y_relaxed (float, eV); cell (1, 3, 3), pbc (1, 3), atomic_numbers, fixed and
        tags (N,), natoms, sid.
    """
    import torch
    from torch_geometric.data import Data

    first, last = relaxation.first, relaxation.last
    shift = near_origin(first.positions, first.cell, first.pbc) - first.positions
    relaxed = near_cell(last.positions + shift, first.cell, first.pbc)
    return Data(
        pos_relaxed=torch.tensor(relaxed, dtype=torch.float32),
        y_init=first.energy - reference,
        y_relaxed=last.energy - reference,
        **structure_of(first),
        sid=int(sid),
    )


@one_writer
def convert_relaxations(
    sources: Iterable[Source],
    out: str | Path,
    *,
    energy_reference: str = "none",
    options: LabelOptions | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write first and last frames of relaxations to ``out/data.0000.lmdb``; returns dataset.json.

    Args:
        sources: one relaxation each, or several distinguished by ``options.system_key``.
        out: the directory.
        energy_reference: that of the model's training data: ``none``; ``last-frame``, which makes
            every relaxed energy 0; or an npz with ``coeff`` by atomic number (eV per atom), the
            ``linear_reference.npz`` of those data.
        options: where to find the labels. skip_bad: leave out and list sources that are not
            relaxations. overwrite: replace what this function wrote before.

    Raises:
        DataError: a source that is not a relaxation, an element without a reference, or an existing
            directory.
    """
    out = Path(out)
    check_target(out, None, overwrite)
    found, bad = _read_all(sources, options or LabelOptions(), skip_bad)
    references = list(_references(found, energy_reference))
    records = [to_record(r, sid, e) for sid, (r, e) in enumerate(zip(found, references))]
    atoms = sum(int(record.natoms) for record in records)
    entry = {
        "task": "IS2RE",
        "records": len(records),
        "atoms": atoms,
        "unconverged": sum(r.last.max_free_force() > _RELAXED for r in found),
        "rising": sum(r.rise > RISE for r in found),
        "bad": bad,
        "energy_reference": energy_reference,
        "version": package_version(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    systems = {
        str(sid): {
            "source": r.shown,
            "frames": r.frames,
            "rise_eV": round(r.rise, 4),
            "max_free_force_of_last": round(r.last.max_free_force(), 4),
        }
        for sid, r in enumerate(found)
    }
    with staging(out, None) as folder:
        write_records(folder / "data.0000.lmdb", records, atoms, len(records))
        natoms = np.array([int(record.natoms) for record in records])
        write_metadata(folder, natoms, np.arange(len(records)), np.zeros(len(records), dtype=int))
        write_json(folder / DATASET_FILE, entry)
        write_json(folder / SYSTEMS_FILE, systems)
    return entry


def _read_all(
    sources: Iterable[Source], options: LabelOptions, skip_bad: bool
) -> tuple[list[Relaxation], list[str]]:
    """The relaxations, and a message for each one left out."""
    found: list[Relaxation] = []
    bad: list[str] = []
    for source in sources:
        relaxations, problems = read_relaxations(source, options)
        if problems and not skip_bad:
            raise DataError(
                f"{problems[0]} (--skip-bad leaves out and lists files that are not relaxations)"
            )
        found += relaxations
        bad += problems
    if not found:
        raise DataError("no relaxations to convert" + "".join(f"\n  {line}" for line in bad))
    return found, bad


def _references(found: list[Relaxation], given: str) -> Iterator[float]:
    """The reference energy of each system, eV."""
    if given in ("none", "last-frame"):
        yield from (r.last.energy if given == "last-frame" else 0.0 for r in found)
        return
    from ase.data import chemical_symbols

    coefficients, seen = load_linear(given)
    for relaxation in found:
        numbers = relaxation.first.numbers
        missing = sorted({int(z) for z in numbers[~seen[numbers]]})
        if missing:
            raise DataError(
                f"{relaxation.shown}: {given} has no coefficient for "
                f"{', '.join(chemical_symbols[z] for z in missing)}"
            )
        yield float(coefficients[numbers].sum())
