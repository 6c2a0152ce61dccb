"""The data set of a fit: conversion with the code of ``ndem data``, checks, statistics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.data.check import check_dataset
from fairchem_kit.data.convert import convert
from fairchem_kit.data.findings import Finding, SplitReport
from fairchem_kit.data.plan import ConvertOptions, kept_frames
from fairchem_kit.data.reader.pages import LmdbFile
from fairchem_kit.data.reader.unpickle import load_fields
from fairchem_kit.data.record_check import CheckOptions
from fairchem_kit.data.reference import FILE_NAME, load_linear
from fairchem_kit.data.scan import GeometryLimits, SourceScan, merge_scans
from fairchem_kit.data.split import TEST, TRAIN, VAL
from fairchem_kit.data.staging import DATASET_FILE, SYSTEMS_FILE, read_json
from fairchem_kit.data.statistics import Statistics
from fairchem_kit.words import counted
from ndem_ocp.fit.errors import FitError
from ndem_ocp.fit.inputs import Inputs
from ndem_ocp.fit.splitting import choose_reference, choose_split

MAX_FORCE = 50.0  # eV/A, as docs/data.md advises
MIN_DISTANCE = CheckOptions.min_distance
_TOO_MANY = 0.1  # if more of the frames are above it, the unit is wrong, not a few first steps
KEY = "fit"  # in the entry of dataset.json, for the decisions of the fit


@dataclass(frozen=True)
class FitData:
    """A data set on disk.

    Attributes:
        path: its folder. splits: {name: statistics}. pbc: of all frames, such as ``TTT``.
        entry: of dataset.json.
    """

    path: Path
    splits: dict[str, Statistics]
    pbc: str
    entry: dict[str, Any]

    @property
    def train(self) -> Statistics:
        return self.splits[TRAIN]

    @property
    def periodic(self) -> bool:
        return "T" in self.pbc

    def described(self) -> str:
        """Frames, elements, atoms, cell, and the spread of the labels, on one line."""
        from ase.data import chemical_symbols

        train, splits = self.train, self.splits
        frames = sum(split.frames for split in splits.values())
        counts = ", ".join(f"{splits[n].frames} {n}" for n in (TRAIN, VAL, TEST) if n in splits)
        low, high = train.atoms_min, train.atoms_max
        atoms = counted(low, "atom") if low == high else f"{low}-{counted(high, 'atom')}"
        return (
            f"{'data':<10}{counted(frames, 'frame')} ({counts}) of "
            f"{' '.join(chemical_symbols[z] for z in train.elements)}, {atoms}, "
            f"{'periodic ' + self.pbc if self.periodic else 'no cell'}; forces rms "
            f"{train.force_rms:.4g} eV/A, energies vary by {train.energy_stdev:.4g} eV"
        )


def make(inputs: Inputs, out: Path, seed: int, skip_bad: bool, cutoff: float, workers: int) -> None:
    """Convert the files into ``out``; ``cutoff``: A, of the model.

    Raises:
        DataError: unusable frames. FitError: frames that do not make one data set.
    """
    options = ConvertOptions(
        seed=seed,
        max_force=MAX_FORCE,
        geometry=GeometryLimits(MIN_DISTANCE, cutoff),
        skip_bad=skip_bad,
        labels=inputs.labels,
    )
    decided: dict[str, Any] = {}

    def decide(scans: list[SourceScan]) -> tuple[ConvertOptions, np.ndarray]:
        everything = merge_scans(scans)
        _refuse_mixed_cells(scans)
        _refuse_other_unit(everything.max_force, inputs.labels.unit)
        table = everything.select(kept_frames(everything, options))
        split = choose_split(table, inputs.roles, seed)
        mode, why = choose_reference(table, split.of)
        decided.update(split=split.reason, by_system=split.by_system, reference=why)
        return replace(options, energy_reference=mode), split.of

    convert(
        inputs.sources,
        out,
        options,
        decide=decide,
        provenance={KEY: decided},
        workers=workers,
    )


def _refuse_mixed_cells(scans: list[SourceScan]) -> None:
    seen: dict[str, str] = {}
    for scan in scans:
        for pbc in scan.pbc:
            seen.setdefault(pbc, scan.source.path)
    if len(seen) > 1:
        listed = ", ".join(f"{pbc} in {path}" for pbc, path in sorted(seen.items()))
        raise FitError(
            f"frames of different periodicity ({listed}) cannot be in one batch: fit them "
            "separately, or give all the same pbc and cell."
        )


def _refuse_other_unit(forces: np.ndarray, unit: str) -> None:
    """Forces in another unit look like unphysical ones and would be dropped as such."""
    share = float((forces > MAX_FORCE).mean())
    if share <= _TOO_MANY:
        return
    hint = (
        "Are the labels in kcal/mol or kJ/mol? Then give --units"
        if unit == "eV"
        else f"Are the labels really in {unit}? See --units"
    )
    raise FitError(
        f"{share:.0%} of the frames have a force above {MAX_FORCE:g} eV/A (the largest: "
        f"{forces.max():.4g}). {hint}; otherwise leave such frames out."
    )


def load(path: Path, workers: int) -> FitData:
    """Read every record of the data set: checks and statistics.

    Raises:
        FitError: records that would stop or spoil the training.
    """
    reports = check_dataset(path, workers=workers)
    entry = read_json(path / DATASET_FILE)["conversions"][-1]
    _refuse_errors(reports, path)
    splits = {Path(r.path).name: r.statistics for r in reports if r.statistics is not None}
    if not splits[TRAIN].force_rms:
        raise FitError("all training forces are 0: there is nothing to learn from them.")
    return FitData(path, splits, entry["pbc"][0], entry)


def subtracted(path: Path) -> np.ndarray | None:
    """(119,) eV per atom by atomic number, the energy reference of a data set; None if it has
    none."""
    reference = path / FILE_NAME
    return load_linear(reference)[0] if reference.is_file() else None


def _refuse_errors(reports: list[SplitReport], path: Path) -> None:
    errors = [f for report in reports for f in report.findings if f.severity == "error"]
    if not errors:
        return
    number = sum(n for r in reports for (severity, _), n in r.counts.items() if severity == "error")
    shown = "\n  ".join(_with_source(finding, path) for finding in errors[:5])
    more = f"\n  ... and {number - 5} more (ndem data check {path})" if number > 5 else ""
    raise FitError(
        f"{counted(number, 'record')} would stop or spoil the training:\n  {shown}{more}\nTake "
        "these frames out of the source."
    )


def _with_source(finding: Finding, path: Path) -> str:
    """A finding with the frame of the user's file from which the record was made."""
    try:
        with LmdbFile(finding.file) as file:
            fields = load_fields(file.get(b"%d" % finding.record))
        systems = read_json(path / SYSTEMS_FILE).values()
        files = next(s["source"] for s in systems if s["sid"] == int(fields["sid"]))
        return f"{', '.join(files)}: frame {int(fields['fid'])}: {finding.message}"
    except Exception:  # the record is too damaged to say where it is from
        return str(finding)
