"""The plan of a conversion for every frame, made after the first pass and before writing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.words import counted

from .errors import DataError
from .frame_records import FrameRecords
from .frames import LabelOptions
from .reference import FILE_NAME, MODES, Reference, apply_reference, last_frame_reference
from .scan import FrameTable, GeometryLimits, SourceScan, formula_of, merge_scans
from .split import TRAIN, assign_sids, split_units
from .writer import FORMATS


@dataclass(frozen=True)
class ConvertOptions:
    """Settings of a conversion; the names are those of the command line.

    Attributes:
        val_fraction, test_fraction: fractions of the systems (or frames) for val and test.
        split_by: ``system`` or ``frame``. seed: of the split.
        split: name of the only split; None: train (and val, test).
        energy_reference: ``none``, ``last-frame``, ``linear`` or the path of an npz file.
        max_force: eV/A; frames with a larger force on a free atom are dropped and counted.
        geometry: which structures are unusable too; None: `ndem data check` finds them.
        skip_bad: skip and list unusable frames instead of stopping.
        format: ``lmdb``, OC20's S2EF for fairchem 1.10, or ``aselmdb`` for fairchem 2.
        frames_per_shard: None: 1000, more for large sets so that there are at most 64 shards.
    """

    val_fraction: float = 0.0
    test_fraction: float = 0.0
    split_by: str = "system"
    seed: int = 0
    split: str | None = None
    energy_reference: str = "none"
    max_force: float | None = None
    geometry: GeometryLimits | None = None
    skip_bad: bool = False
    overwrite: bool = False
    frames_per_shard: int | None = None
    format: str = "lmdb"
    labels: LabelOptions = field(default_factory=LabelOptions)


def check_options(options: ConvertOptions) -> None:
    """Raise DataError for settings that contradict each other."""
    if options.split is not None and (options.val_fraction or options.test_fraction):
        raise DataError("--split puts all frames into one split; leave out the fractions")
    if options.split is not None and not options.split.replace("_", "").isalnum():
        raise DataError(f"--split {options.split!r}: use letters, digits and _ only")
    if options.format not in FORMATS:
        raise DataError(f"--format {options.format}: choose one of {', '.join(FORMATS)}")
    if options.split_by not in ("system", "frame"):
        raise DataError("--split-by is `system` or `frame`")
    mode = options.energy_reference
    if mode not in MODES and not Path(mode).is_file():
        raise DataError(f"--energy-reference {mode}: neither a file nor one of {', '.join(MODES)}")
    if mode == "linear" and options.split not in (None, TRAIN):
        raise DataError(
            "--energy-reference linear is fitted on the training split, but this is another one; "
            f"give the fitted file: --energy-reference DIR/{FILE_NAME}"
        )
    if options.max_force is not None and not options.max_force > 0:
        raise DataError("--max-force is a force in eV/A above 0")
    if options.frames_per_shard is not None and options.frames_per_shard < 1:
        raise DataError("--frames-per-shard must be at least 1")


@dataclass
class Plan:
    """The frames to write, with their splits, references and numbers.

    Attributes:
        table: the kept frames. split: (n,) name of the split of each. reference: to subtract. sids:
            number of each system. dropped: frames dropped for their forces, per source file. lost:
            systems without any frame left.
    """

    table: FrameTable
    split: np.ndarray
    reference: Reference
    sids: dict[str, int]
    dropped: dict[str, int]
    lost: list[str]

    def records(self, labels: LabelOptions) -> FrameRecords:
        """The frames, to be read again with these options and written."""
        sids = np.array([self.sids.get(name, -1) for name in self.table.systems], dtype=np.int64)
        return FrameRecords(self.table, labels, sids[self.table.system], self.reference.energy)


def make_plan(
    scans: Sequence[SourceScan],
    options: ConvertOptions,
    assign: Mapping[str, str] | np.ndarray | None = None,
    existing: Mapping[str, Any] | None = None,
) -> Plan:
    """Select the scanned frames and give them splits, references and numbers.

    Args:
        scans: the first pass. options: settings.
        assign: ``{source name: split}``, or the (n,) split of each kept frame, instead of the
            fractions.
        existing: systems.json of the data set to which frames are added.

    Raises:
        DataError: no frames left, splits without frames, a reference that does not cover all
            elements.
    """
    everything = merge_scans(scans)
    last = last_frame_reference(everything.system, everything.energy)
    keep = kept_frames(everything, options)
    table = everything.select(keep)
    split = _assign_splits(table, options, assign)
    reference = apply_reference(options.energy_reference, table, split == TRAIN, last[keep])
    lost = np.setdiff1d(everything.system, table.system)
    numbers = np.bincount(everything.source[~keep], minlength=len(everything.sources))
    dropped = {s.shown: int(n) for s, n in zip(everything.sources, numbers, strict=True) if n}
    sids = assign_sids([table.systems[s] for s in np.unique(table.system)], existing)
    return Plan(table, split, reference, sids, dropped, [table.systems[s] for s in lost])


def kept_frames(everything: FrameTable, options: ConvertOptions) -> np.ndarray:
    """(n,) bool: the frames that are not dropped for their forces.

    Raises:
        DataError: no frame is left.
    """
    keep = np.ones(len(everything), dtype=bool)
    if options.max_force is not None:
        keep = everything.max_force <= options.max_force
    if not keep.any():
        raise DataError(
            f"{counted(len(keep), 'frame')} read, and all have a force above "
            f"{options.max_force:g} eV/A (--max-force)"
        )
    return keep


def _assign_splits(
    table: FrameTable, options: ConvertOptions, assign: Mapping[str, str] | np.ndarray | None
) -> np.ndarray:
    if isinstance(assign, np.ndarray):
        return assign
    if assign is not None:
        names = np.array([assign[source.name] for source in table.sources], dtype=object)
        return names[table.source]
    if options.split is not None:
        return np.full(len(table), options.split, dtype=object)
    units = table.system if options.split_by == "system" else np.arange(len(table))
    fractions = options.val_fraction, options.test_fraction
    return split_units(units, *fractions, options.seed, options.split_by)


def describe_systems(plan: Plan) -> dict[str, Any]:
    """The entries of systems.json: ``{name: {sid, formula, source, split, frames, ...}}``."""
    table, entries = plan.table, {}
    for system in np.unique(table.system):
        rows = np.flatnonzero(table.system == system)
        name = table.systems[system]
        entry: dict[str, Any] = {
            "sid": plan.sids[name],
            "formula": formula_of(table.compositions[table.composition[rows[0]]]),
            "source": [table.sources[s].shown for s in np.unique(table.source[rows])],
            "split": sorted(set(plan.split[rows])),
            "frames": len(rows),
        }
        if plan.reference.record["kind"] != "none":
            entry["reference_energy_eV"] = float(plan.reference.energy[rows[0]])
        entries[name] = entry
    return entries


def merge_systems(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """systems.json with the systems of a conversion added.

    Args:
        old: systems.json so far. new: of the conversion; its splits replace those of the same name.
    """
    made = {split for entry in new.values() for split in entry["split"]}
    merged = {}
    for name, entry in old.items():
        left = [split for split in entry["split"] if split not in made]
        if left:
            frames = entry["frames"] if left == entry["split"] else 0  # not known for each split
            merged[name] = {**entry, "split": left, "frames": frames}
    for name, entry in new.items():
        before = merged.get(name, {"split": [], "source": [], "frames": 0})
        merged[name] = {
            **entry,
            "split": sorted({*before["split"], *entry["split"]}),
            "source": list(dict.fromkeys([*before["source"], *entry["source"]])),
            "frames": before["frames"] + entry["frames"],
        }
    return merged
