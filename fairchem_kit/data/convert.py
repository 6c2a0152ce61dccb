"""ASE trajectories and databases -> sharded S2EF LMDBs, or aselmdb files (``ndem data ase``)."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.words import counted

from .aselmdb import SETTINGS_FILE
from .errors import DataError
from .fairchem2_settings import write_settings
from .frame_files import Source
from .lock import one_writer
from .plan import (
    ConvertOptions,
    Plan,
    check_options,
    describe_systems,
    make_plan,
    merge_systems,
)
from .reference import FILE_NAME, save_linear
from .scan import SourceScan, scan_sources
from .split_record import identified, in_words, references_differ
from .staging import DATASET_FILE, SYSTEMS_FILE, check_target, read_json
from .writer import FORMATS, DataSet, write


@one_writer
def convert(
    sources: Sequence[Source],
    out: str | Path,
    options: ConvertOptions | None = None,
    *,
    assign: Mapping[str, str] | None = None,
    decide: Callable[[list[SourceScan]], tuple[ConvertOptions, np.ndarray]] | None = None,
    provenance: Mapping[str, Any] | None = None,
    workers: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Convert sources to ``out/SPLIT/data.NNNN.lmdb`` (or ``.aselmdb``), with metadata and a record
    of the conversion.

    Args:
        sources: from ``frame_files.expand``.
        out: directory of the data set; written under a temporary name and moved there when
            complete.
        options: settings.
        assign: ``{source name: split}``, instead of the fractions.
        decide: called after the first pass with the scans of the usable frames; returns the options
            for the rest of the conversion and (n,) the split of each frame that
            ``plan.kept_frames`` keeps.
        provenance: further entries for dataset.json.
        workers: processes. The result does not depend on it.
        progress: show progress bars.

    Returns:
        This conversion's entry in dataset.json.

    Raises:
        DataError: bad options, unusable frames (without ``skip_bad``), an existing target, another
            conversion writing there, or a disk error.
    """
    options, out = options or ConvertOptions(), Path(out)
    check_options(options)
    check_target(out, options.split, options.overwrite)
    adding = options.split is not None and out.is_dir()
    old_systems = read_json(out / SYSTEMS_FILE) if adding else {}
    scans = scan_sources(sources, options.labels, options.geometry, workers, progress)
    bad = _handle_bad(scans, options.skip_bad)
    if decide is not None:
        options, assign = decide(scans)
    plan = make_plan(scans, options, assign, old_systems)
    old = read_json(out / DATASET_FILE) if adding else {}
    _refuse_other_reference(out, old, plan)
    _refuse_other_format(out, old, options)

    def finish(folder: Path, statistics: dict[str, Any]) -> None:
        if plan.reference.record.get("fitted_on"):
            save_linear(folder / FILE_NAME, plan.reference.coefficients, plan.reference.seen)
        if options.format == "aselmdb":
            write_settings(folder / SETTINGS_FILE, out, plan, statistics)

    made = DataSet(
        plan.records(options.labels),
        {split: np.flatnonzero(plan.split == split) for split in dict.fromkeys(plan.split)},
        {**_entry(scans, plan, options, bad), **(provenance or {})},
        merge_systems(old_systems, describe_systems(plan)),
        form=options.format,
        per_shard=options.frames_per_shard,
        only=options.split,
        before=old,
        finish=finish,
    )
    return write(out, made, workers=workers, progress=progress)


def _refuse_other_reference(out: Path, old: Mapping[str, Any], plan: Plan) -> None:
    """All splits of a data set must have the same energy reference.

    Raises:
        DataError: a split that this conversion does not replace has another one.
    """
    new = identified(plan.reference.record, out)
    made = set(plan.split)
    for conversion in old.get("conversions", []):
        others = sorted(set(conversion["splits"]) - made)
        record = conversion.get("energy_reference")
        there = identified(record, out)
        if not others or not references_differ(new, there):
            continue
        linear = there["kind"] == "linear"
        file = out / FILE_NAME if record.get("fitted_on") else record.get("file")
        raise DataError(
            f"{out}: {', '.join(others)} has energies with the reference {in_words(there)}, and "
            f"{', '.join(sorted(made))} would get {in_words(new)}: energy errors would be off by "
            f"the difference. Give --energy-reference {file if linear else there['kind']}, or "
            "convert all splits again into another --out"
        )


def _refuse_other_format(out: Path, old: Mapping[str, Any], options: ConvertOptions) -> None:
    """All splits of a data set are for one fairchem.

    Raises:
        DataError: the others are of another format.
    """
    wanted = FORMATS[options.format]
    if old and old.get("format", wanted) != wanted:
        raise DataError(
            f"{out} is in the format {old['format']}, and --format {options.format} would add "
            f"{wanted}: give another --out"
        )


def _handle_bad(scans: Sequence[SourceScan], skip: bool) -> list[dict[str, Any]]:
    """Stop at unusable frames, or list them if they may be skipped."""
    bad = [entry for scan in scans for entry in scan.bad]
    lines = _lines(bad)
    shown = "\n  ".join(lines[:20] + ([f"... and {len(lines) - 20} more"] if lines[20:] else []))
    what = counted(len(bad), "unusable frame or file", "unusable frames or files")
    if len(lines) == 1 and not skip:
        them = "it" if len(bad) == 1 else "them"
        raise DataError(
            f"{shown}. Nothing was written: correct this, or leave {them} out with --skip-bad"
        )
    if bad and not skip:
        raise DataError(
            f"{what}; nothing was written:\n  {shown}\n"
            "Correct the sources, or leave out and count such frames with --skip-bad"
        )
    if bad:
        print(f"skipped {what}:\n  {shown}", file=sys.stderr)
    return bad


def _lines(bad: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for all frames of a file with the same fault, such as a wrong name of a label."""
    frames: dict[tuple[str, str], list[int | None]] = {}
    for entry in bad:
        frames.setdefault((entry["file"], entry["reason"]), []).append(entry["frame"])
    lines = []
    for (file, reason), numbers in frames.items():
        where = "" if numbers[0] is None else f"frame {numbers[0]}: "
        if len(numbers) > 1:
            where = f"{counted(len(numbers), 'frame')}, the first is {where}"
        lines.append(f"{file}: {where}{reason}")
    return lines


def _entry(
    scans: Sequence[SourceScan],
    plan: Plan,
    options: ConvertOptions,
    bad: list[dict[str, Any]],
) -> dict[str, Any]:
    """The record of one conversion for dataset.json."""
    read = {scan.source.shown: len(scan.frame) + len(scan.bad) for scan in scans}
    constraints: Counter[str] = sum((scan.notes for scan in scans), Counter())
    tags: Counter[str] = sum((scan.foreign_tags for scan in scans), Counter())
    return {
        "options": asdict(options),
        "energy_reference": plan.reference.record,
        "sources": [{"file": path, "frames_read": number} for path, number in read.items()],
        "dropped": {
            "above_max_force": sum(plan.dropped.values()),
            "above_max_force_per_source": plan.dropped,
            "systems_without_frames": plan.lost,
            "bad": bad,
        },
        "pbc": sorted(set().union(*(scan.pbc for scan in scans))),
        "constraints_not_stored": dict(constraints),
        "tags_of_another_convention": dict(tags),
    }
