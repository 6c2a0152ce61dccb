"""IS2RE data: initial structures with their relaxed structures and energies.

One record per relaxation, in the layout of OC20's IS2RE LMDBs. fairchem's ``--mode
run-relaxations`` and ``ndem relax`` start from these records and compare with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .frame_records import structure_of
from .frames import LabelOptions
from .lock import one_writer
from .positions import near_cell, near_origin
from .reference import load_linear
from .relaxation_files import RISE, Relaxation, read_relaxations
from .sources import Source
from .staging import DATASET_FILE, SYSTEMS_FILE, check_target, staging, write_json
from .stream import Record
from .writer import DataSet, package_version, write_splits

#: what the ``relax`` section of a configuration needs in addition to ``src``
KEY_MAPPING = {"y_relaxed": "energy_relaxed"}
_RELAXED = 0.05  # eV/A; OC20's relaxations end at 0.03


def to_record(relaxation: Relaxation, sid: int, reference: float) -> Record:
    """The record of one relaxation: its initial structure, pos_relaxed (N, 3) A, y_init and
    y_relaxed (eV).

    Args:
        relaxation: its first and last frame. sid: its number. reference: eV, subtracted from the
            energies.
    """
    first, last = relaxation.first, relaxation.last
    shift = near_origin(first.positions, first.cell, first.pbc) - first.positions
    relaxed = near_cell(last.positions + shift, first.cell, first.pbc)
    return Record(
        **structure_of(first),
        sid=sid,
        labels={"y_init": first.energy - reference, "y_relaxed": last.energy - reference},
        vectors={"pos_relaxed": relaxed},
    )


@dataclass(frozen=True)
class RelaxationRecords:
    """M relaxations, with their numbers and reference energies (eV)."""

    found: Sequence[Relaxation]
    sid: np.ndarray
    reference: np.ndarray

    @property
    def natoms(self) -> np.ndarray:
        """(M,)"""
        return np.array([len(r.first.numbers) for r in self.found])

    @property
    def fid(self) -> np.ndarray:
        """(M,)"""
        return np.zeros(len(self.found), dtype=int)

    def elements(self, rows: np.ndarray) -> list[int]:
        """Atomic numbers in some relaxations, sorted."""
        return sorted({int(z) for row in rows for z in self.found[row].first.numbers})

    def part(self, rows: np.ndarray) -> RelaxationRecords:
        """Some of the relaxations."""
        found = [self.found[row] for row in rows]
        return RelaxationRecords(found, self.sid[rows], self.reference[rows])

    def __iter__(self) -> Iterator[Record]:
        return map(to_record, self.found, self.sid, self.reference)


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
    references = np.array(list(_references(found, energy_reference)))
    records = RelaxationRecords(found, np.arange(len(found)), references)
    entry = {
        "task": "IS2RE",
        "records": len(found),
        "atoms": int(records.natoms.sum()),
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
        made = DataSet(records, {"": records.sid}, entry, per_shard=len(found), measured=())
        write_splits(folder, made, progress=False)
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
