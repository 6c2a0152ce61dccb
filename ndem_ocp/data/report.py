"""What the data commands print and write as JSON."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .staging import write_json

if TYPE_CHECKING:
    from .findings import SplitReport
    from .record_check import CheckOptions
    from .statistics import Statistics


def print_conversion(out: str | Path, entry: dict[str, Any]) -> None:
    """Say what was written where, and what was dropped and why."""
    for split, counts in entry["splits"].items():
        print(
            f"{Path(out) / split}: {counts['frames']} frames of {counts['systems']} systems, "
            f"{counts['atoms']} atoms, {counts['shards']} shard(s)"
        )
    dropped = entry["dropped"]
    for path, number in dropped["above_max_force_per_source"].items():
        print(f"dropped {number} frame(s) above --max-force: {path}")
    if dropped["systems_without_frames"]:
        print(f"no frame left of: {', '.join(dropped['systems_without_frames'])}")
    if dropped["bad"]:
        print(f"skipped {len(dropped['bad'])} unusable frame(s) or file(s), listed in dataset.json")
    for name, number in entry["constraints_not_stored"].items():
        _warn(f"{name} constraints on {number} frame(s) are not stored; only FixAtoms is")
    if len(entry["pbc"]) > 1:
        _warn(
            f"different periodicity in one data set ({', '.join(entry['pbc'])}): fairchem refuses "
            "to batch them; convert them into separate data sets"
        )


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
            print(f"{number} {severity}(s): {kind}")
        if not total:
            print("no problems found")
        if report.statistics is not None:
            print("\n".join(statistics_lines(report.statistics)))
    trains = [r for r in reports if Path(r.path).name == "train"]
    for report in trains or reports:
        if report.statistics is not None:
            print(f"\n# values of {report.path}, ready to paste\n{normalizer_yaml(report)}", end="")


def statistics_lines(statistics: Statistics) -> list[str]:
    """Readable statistics with units."""
    from ase.data import chemical_symbols

    s = statistics
    curvature = (
        f"not enough pairs of consecutive frames ({s.curvature_pairs})"
        if s.curvature is None
        else f"{s.curvature:.4g} eV/A^2 from {s.curvature_pairs} pairs of consecutive frames"
    )
    return [
        f"frames            {s.frames} of {s.systems} systems",
        f"atoms             {s.atoms} ({s.free_atoms} free), {s.atoms_min}-{s.atoms_max} per frame",
        f"elements          {' '.join(chemical_symbols[z] for z in s.elements)}",
        f"energy            mean {s.energy_mean:.6g} eV, stdev {s.energy_stdev:.6g} eV",
        f"forces            rms {s.force_rms:.6g} eV/A per component (free atoms)",
        f"zero-force MAE    {s.zero_force_mae:.6g} eV/A per component (free atoms)",
        f"curvature         {curvature}",
    ]


def normalizer_yaml(report: SplitReport) -> str:
    """The dataset section of a fairchem 1.10 config with the normalizer values of a split."""
    s = report.statistics
    assert s is not None
    mapping = {report.energy_key: "energy", report.forces_key: "forces"}
    renamed = ", ".join(f"{old}: {new}" for old, new in mapping.items() if old != new)
    energy_mean = round(s.energy_mean, 8) + 0.0  # no -0.0
    lines = [
        "dataset:",
        "  train:",
        "    format: lmdb",
        f"    src: {report.path}",
        *([f"    key_mapping: {{{renamed}}}"] if renamed else []),
        "    transforms:",
        "      normalizer:",
        f"        energy: {{mean: {energy_mean:.8f}, stdev: {s.energy_stdev:.8f}}}  # eV",
        f"        forces: {{mean: 0.0, stdev: {s.force_rms:.8f}}}  # eV/A",
    ]
    return "\n".join(lines) + "\n"


def write_check(path: str | Path, reports: list[SplitReport], options: CheckOptions) -> None:
    """Write all kept findings, their counts and the statistics as JSON."""
    content = {
        "options": asdict(options),
        "splits": [
            {
                "path": report.path,
                "findings": [asdict(finding) for finding in report.findings],
                "counts": {f"{s}: {kind}": n for (s, kind), n in sorted(report.counts.items())},
                "statistics": None if report.statistics is None else report.statistics.as_dict(),
            }
            for report in reports
        ],
    }
    write_json(Path(path), content)
