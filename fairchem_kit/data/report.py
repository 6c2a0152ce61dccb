"""Output of the data commands, on the screen and as JSON."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairchem_kit.words import counted

from .aselmdb import SETTINGS_FILE, is_fairchem2
from .errors import DataError
from .fields import QM9_UNITS
from .lock import describe
from .split_record import element_problem, split_record
from .staging import write_json
from .units import DEFAULT, units_of

if TYPE_CHECKING:
    from .findings import SplitReport
    from .record_check import CheckOptions
    from .statistics import Statistics


def print_conversion(out: str | Path, entry: dict[str, Any]) -> None:
    """Print what was written where, and what was dropped and why."""
    for split, counts in entry["splits"].items():
        print(
            f"{Path(out) / split}: {counted(counts['frames'], 'frame')} of "
            f"{counted(counts['systems'], 'system')}, {counted(counts['atoms'], 'atom')}, "
            f"{counted(counts['shards'], 'shard')}"
        )
    settings = Path(out) / SETTINGS_FILE
    if entry["options"].get("format") == "aselmdb":
        print(f"{settings}: element references and normalizer, for fairchem 2's data group")
    for split in entry["splits"]:
        problem = element_problem(*(split_record(Path(out) / name) for name in ("train", split)))
        if problem is not None:
            _warn(f"{problem}; move such systems to train (--seed, fractions), or leave them out")
    print_losses(entry)


def print_losses(entry: dict[str, Any]) -> None:
    """Print what was left out or changed from the sources."""
    dropped = entry["dropped"]
    for path, number in dropped["above_max_force_per_source"].items():
        limit = entry["options"]["max_force"]
        print(f"left out {counted(number, 'frame')} with a force above {limit:g} eV/A: {path}")
    if dropped["systems_without_frames"]:
        print(f"no frames left of: {', '.join(dropped['systems_without_frames'])}")
    if dropped["bad"]:
        what = "unusable frame or file", "unusable frames or files"
        print(f"skipped {counted(len(dropped['bad']), *what)}, listed in dataset.json")
    for name, number in entry["constraints_not_stored"].items():
        _warn(f"{name} constraints on {counted(number, 'frame')} are not stored; only FixAtoms is")
    derived = entry["options"]["labels"]["tags"] == "auto"
    for values, number in entry["tags_of_another_convention"].items():
        _warn(
            f"the tags of {counted(number, 'frame')} are {values}, and not OC20's (0 below the "
            "surface, 1 surface, 2 adsorbate); they "
            f"{'were replaced by derived tags' if derived else 'are kept (--tags)'}"
        )
    if len(entry["pbc"]) > 1:
        _warn(
            f"different periodicity in one data set ({', '.join(entry['pbc'])}): fairchem refuses "
            "to batch them; convert them into separate data sets"
        )


def print_molecules(out: str | Path, entry: dict[str, Any]) -> None:
    """Print what ``ndem data md17`` or ``qm9`` wrote, and the values for a configuration."""
    from .findings import SplitReport
    from .statistics import Statistics

    for split, counts in entry["splits"].items():
        print(
            f"{Path(out) / split}: {counted(counts['frames'], 'molecule')}, "
            f"{counted(counts['atoms'], 'atom')}, {counted(counts['shards'], 'shard')}"
        )
    unused = entry["split"]["unused"] + entry["split"].get("test_file_unused", 0)
    if unused:
        print(f"{counted(unused, 'molecule')} in no split")
    removed = entry.get("dropped", {}).get("uncharacterised")
    if removed:
        print(f"left out {removed} uncharacterised molecules")
    reference = entry["energy_reference"]
    if reference["kind"] == "mean":
        print(f"subtracted {reference['constant']:.6f} {reference['unit']} from every energy")
    train = Path(out) / "train"
    statistics, units = Statistics(**entry["statistics"]["train"]), units_of(train)
    report = SplitReport(str(train), statistics=statistics, units=units)
    print("\n".join(statistics_lines(statistics, units)))
    print(f"\n# values of {report.path}, ready to paste\n{normalizer_yaml(report)}", end="")


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def print_check(reports: list[SplitReport], show: int) -> None:
    """Print the findings (at most ``show`` per split), counts and statistics of each split."""
    for report in reports:
        print(f"== {report.path}")
        for finding in report.findings[:show]:
            print(finding)
        total = sum(report.counts.values())
        if total > show:
            print(f"... {total - show} more findings (--show, --json)")
        for (severity, kind), number in sorted(report.counts.items()):
            print(f"{counted(number, severity)}: {kind}")
        if not total:
            print("no problems found")
        if report.statistics is not None:
            print("\n".join(statistics_lines(report.statistics, report.units)))
    trains = [r for r in reports if Path(r.path).name == "train"]
    for report in trains or reports:
        if report.statistics is None:
            continue
        if is_fairchem2(Path(report.path)):
            settings = Path(report.path).parent / SETTINGS_FILE
            if settings.is_file():  # not beside data that fairchem's own scripts wrote
                print(f"\n{settings} has what fairchem 2 needs to know")
        else:
            print(f"\n# values of {report.path}, ready to paste\n{normalizer_yaml(report)}", end="")


def statistics_lines(statistics: Statistics, units: Mapping[str, str] = DEFAULT) -> list[str]:
    """Readable statistics with units."""
    from ase.data import chemical_symbols

    s, energy, force = statistics, units.get("y", "eV"), units.get("force", "eV/A")
    curvature = (
        f"not enough pairs of consecutive frames ({s.curvature_pairs})"
        if s.curvature is None
        else f"{s.curvature:.4g} {force}^2 from {counted(s.curvature_pairs, 'pair')} of "
        "consecutive frames"
    )
    lines = [
        f"frames            {s.frames} of {counted(s.systems, 'system')}",
        f"atoms             {s.atoms} ({s.free_atoms} free), {s.atoms_min}-{s.atoms_max} per frame",
        f"elements          {' '.join(chemical_symbols[z] for z in s.elements)}",
    ]
    if s.energy_mean is not None:
        lines.append(f"energy            mean {s.energy_mean:.6g} {energy}, "
                     f"stdev {s.energy_stdev:.6g} {energy}")  # fmt: skip
    if s.force_rms is not None:
        lines += [
            f"forces            rms {s.force_rms:.6g} {force} per component (free atoms)",
            f"zero-force MAE    {s.zero_force_mae:.6g} {force} per component (free atoms)",
            f"curvature         {curvature}",
        ]
    for name, (mean, stdev) in s.targets.items():
        unit = units.get(name, QM9_UNITS[name])
        lines.append(f"{name:<17} mean {mean:.6g} {unit}, stdev {stdev:.6g} {unit}")
    return lines


def normalizer_yaml(report: SplitReport) -> str:
    """The dataset section of a fairchem 1.10 config with the normalizer values of a split."""
    s = report.statistics
    assert s is not None
    mapping, values = {}, []
    if s.energy_mean is not None:
        mapping[report.energy_key] = "energy"
        values.append(("energy", s.energy_mean, s.energy_stdev, report.units.get("y", "eV")))
    if s.force_rms is not None:
        mapping[report.forces_key] = "forces"
        values.append(("forces", None, s.force_rms, report.units.get("force", "eV/A")))
    for name, (mean, stdev) in s.targets.items():
        values.append((name, mean, stdev, report.units.get(name, QM9_UNITS[name])))
    renamed = ", ".join(f"{old}: {new}" for old, new in mapping.items() if old != new)
    lines = [
        "dataset:",
        "  train:",
        "    format: ndem_lmdb",
        f"    src: {report.path}",
        *([f"    key_mapping: {{{renamed}}}"] if renamed else []),
        "    transforms:",
        "      normalizer:",
    ]
    for name, mean, stdev, unit in values:
        shown = "0.0" if mean is None else f"{round(mean, 8) + 0.0:.8f}"  # no -0.0
        lines.append(f"        {name}: {{mean: {shown}, stdev: {stdev:.8f}}}  # {unit}")
    return "\n".join(lines) + "\n"


def write_check(path: str | Path, reports: list[SplitReport], options: CheckOptions) -> None:
    """Write all kept findings, their counts and the statistics as JSON.

    Raises:
        DataError: a disk error.
    """
    content = {
        "options": {k: v for k, v in asdict(options).items() if k != "force_unit"},
        "splits": [
            {
                "path": report.path,
                "findings": [asdict(finding) for finding in report.findings],
                "counts": {f"{s}: {kind}": n for (s, kind), n in sorted(report.counts.items())},
                "units": report.units,
                "statistics": None if report.statistics is None else report.statistics.as_dict(),
            }
            for report in reports
        ],
    }
    try:
        write_json(Path(path), content)
    except OSError as error:
        raise DataError(f"--json {path} was not written: {describe(error)}") from None
