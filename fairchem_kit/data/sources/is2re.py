"""ASE relaxation trajectories -> IS2RE LMDBs, for relaxations with a model.

One record per relaxation, in the layout of OC20's IS2RE LMDBs. fairchem's ``--mode
run-relaxations`` and ``ndem relax`` start from these records and compare with them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.commands.options import (
    add_labels,
    add_system_key,
    add_tags,
    add_writing,
    chosen,
)
from fairchem_kit.data.errors import DataError
from fairchem_kit.data.frame_files import Source
from fairchem_kit.data.frames import LabelOptions
from fairchem_kit.data.lmdb_writer import write_metadata, write_records
from fairchem_kit.data.lock import one_writer
from fairchem_kit.data.reference import load_linear
from fairchem_kit.data.relaxation_files import (
    RISE,
    Relaxation,
    read_relaxations,
    to_record,
)
from fairchem_kit.data.sources import register
from fairchem_kit.data.sources.ase import expand_sources
from fairchem_kit.data.staging import (
    DATASET_FILE,
    SYSTEMS_FILE,
    check_target,
    staging,
    write_json,
)
from fairchem_kit.data.writer import package_version
from fairchem_kit.words import counted

#: what the ``relax`` section of a configuration needs in addition to ``src``
KEY_MAPPING = {"y_relaxed": "energy_relaxed"}
_RELAXED = 0.05  # eV/A; OC20's relaxations end at 0.03


@register
class Relaxations:
    """Initial and relaxed structures."""

    @classmethod
    def configure(cls, parser: argparse.ArgumentParser) -> None:
        parser.description = (
            "One record per trajectory: the first frame is the initial structure, the last one the "
            "relaxed structure and energy."
        )
        add = parser.add_argument
        add("sources", nargs="+", metavar="SOURCE", help="files, directories or glob patterns")
        add("--out", required=True, metavar="DIR", help="writes DIR/data.0000.lmdb")
        add(
            "--energy-reference",
            default="none",
            metavar="REF",
            help="that of the model's training data: none, last-frame, or their "
            "linear_reference.npz (default: none)",
        )
        add_tags(parser)
        add_labels(parser)
        add_system_key(parser)
        add(
            "--skip-bad",
            action="store_true",
            help="leave out and list files that are not relaxations",
        )
        add_writing(parser)
        parser.set_defaults(func=cls.run)

    @classmethod
    def run(cls, args: argparse.Namespace) -> int:
        entry = convert_relaxations(
            expand_sources(args.sources),
            args.out,
            energy_reference=args.energy_reference,
            options=chosen(LabelOptions, args, unit=args.units),
            skip_bad=args.skip_bad,
            overwrite=args.overwrite,
        )
        _print(args.out, entry)
        return 0


def _print(out: str, entry: dict[str, Any]) -> None:
    print(
        f"wrote {entry['records']} initial and relaxed structures "
        f"({counted(entry['atoms'], 'atom')}) to {out}; energy reference: "
        f"{entry['energy_reference']}."
    )
    if entry["bad"]:
        shown = "\n  ".join(entry["bad"])
        print(f"left out {len(entry['bad'])}:\n  {shown}", file=sys.stderr)
    if entry["rising"]:
        print(
            f"{entry['rising']} of them end more than {RISE} eV above their start (rise_eV in "
            "systems.json): is the order of their frames right, and is each a single relaxation?",
            file=sys.stderr,
        )
    if entry["unconverged"]:
        print(
            f"{entry['unconverged']} of them end with a force above {_RELAXED} eV/A on a free atom "
            f"(systems.json lists all): these are not relaxed.",
            file=sys.stderr,
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
    references = _references(found, energy_reference)
    records = [to_record(r, sid, e) for sid, (r, e) in enumerate(zip(found, references))]
    natoms = np.array([len(record.numbers) for record in records])
    entry = {
        "task": "IS2RE",
        "records": len(found),
        "atoms": int(natoms.sum()),
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
        path = folder / "data.0000.lmdb"
        write_records(path, (r.data() for r in records), entry["atoms"], len(records))
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
