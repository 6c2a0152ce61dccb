"""Checks across all splits of a data set: references, elements, numbers of systems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairchem_kit.words import counted

from .errors import DataError
from .findings import Finding, SplitReport
from .record_check import ERROR, WARNING
from .split_record import SplitRecord, element_problem, reference_problem, split_record
from .staging import DATASET_FILE, SYSTEMS_FILE, read_json

#: number of a system -> the formula of its first record
Formulas = Mapping[Any, str]


def check_set(reports: list[SplitReport], formulas: list[Formulas]) -> None:
    """Add disagreements between splits to their reports.

    Args:
        reports: of the checked splits. formulas: of the systems of each.
    """
    for report, found in zip(reports, formulas):
        split = Path(report.path)
        if split.is_dir():
            _check_reference(report, split)
            _check_systems(report, split, found)
    train = next((r for r in reports if Path(r.path).name == "train"), None)
    for number, (report, found) in enumerate(zip(reports, formulas)):
        if train is not None and report is not train:
            _check_elements(report, train)
        for earlier, others in zip(reports[:number], formulas[:number]):
            _check_shared(report, found, earlier, others)


def _error(report: SplitReport, file: Path | str, kind: str, message: str) -> None:
    report.add(Finding(str(file), None, ERROR, kind, message))


def _check_reference(report: SplitReport, split: Path) -> None:
    """Compare the reference of a split with that of train next to it, both from dataset.json."""
    problem = reference_problem(
        split_record(split.absolute().parent / "train"), split_record(split)
    )
    if problem is not None:
        _error(report, split.absolute().parent / DATASET_FILE, "reference", problem)


def _check_elements(report: SplitReport, train: SplitReport) -> None:
    if report.statistics is None or train.statistics is None:
        return
    records = (
        SplitRecord(Path(r.path), elements=frozenset(r.statistics.elements))
        for r in (train, report)
        if r.statistics is not None
    )
    problem = element_problem(*records)
    if problem is not None:
        report.add(Finding(report.path, None, WARNING, "elements", problem))


def _check_shared(
    report: SplitReport, found: Formulas, earlier: SplitReport, others: Formulas
) -> None:
    """Report systems in two splits that have the same number."""
    known = _of_both(Path(report.path), Path(earlier.path))
    both = [s for s in found if s in others and found[s] != others[s] and s not in known]
    if both:
        sid = both[0]
        _error(
            report,
            report.path,
            "sid",
            f"sid {sid} is {found[sid]} here and {others[sid]} in {earlier.path} "
            f"({counted(len(both), 'such number')}): two systems have the same number; convert "
            "them again, one split after the other",
        )


def _of_both(split: Path, other: Path) -> set[Any]:
    """Numbers of systems that are in both splits according to systems.json (with --system-key their
    formulas may differ)."""
    if split.absolute().parent != other.absolute().parent:
        return set()
    try:
        systems = read_json(split.absolute().parent / SYSTEMS_FILE).values()
        names = {split.absolute().name, other.absolute().name}
        return {entry["sid"] for entry in systems if names <= set(entry["split"])}
    except (AttributeError, DataError, KeyError, TypeError):
        return set()


def _check_systems(report: SplitReport, split: Path, found: Formulas) -> None:
    """systems.json against itself and against the records of a split."""
    path = split.absolute().parent / SYSTEMS_FILE
    name = split.absolute().name
    try:
        systems = read_json(path)
        own = {entry["sid"] for entry in systems.values() if name in entry["split"]}
        every = Counter(entry["sid"] for entry in systems.values())
    except (AttributeError, DataError, KeyError, TypeError):
        return  # made by other tools
    for sid in [sid for sid, count in every.items() if count > 1][:5]:
        names = [system for system, entry in systems.items() if entry["sid"] == sid]
        _error(
            report, path, "sid", f"{' and '.join(names)} have the same sid, {sid}; convert again"
        )
    known = [sid for sid in found if sid is not None] if systems else []
    missing = [sid for sid in known if sid not in every]
    if missing:
        _error(
            report,
            path,
            "sid",
            f"it lacks systems of {name}: {_some(missing)}; two conversions have written "
            "here at the same time, or it belongs to another data set: convert again",
        )
    elsewhere = [sid for sid in known if sid in every and sid not in own]
    if elsewhere:
        message = (
            f"systems of {name} are listed for other splits only: {_some(elsewhere)}; "
            "two conversions have written here at the same time, or one of an earlier version has "
            "replaced the entries of another"
        )
        report.add(Finding(str(path), None, WARNING, "sid", message))


def _some(sids: list[Any]) -> str:
    shown = ", ".join(map(str, sids[:5]))
    return shown if len(sids) <= 5 else f"{shown}, ... ({len(sids)} in all)"
