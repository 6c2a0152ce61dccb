"""MD17, revised MD17 and CCSD(T) npz files -> S2EF LMDBs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.data.errors import DataError
from fairchem_kit.data.index_split import SplitOptions, indices_hash, make_split, random_split
from fairchem_kit.data.md17_files import LABELS, Trajectory, join, read_trajectory
from fairchem_kit.data.molecule_source import MoleculeSource
from fairchem_kit.data.molecules import check_molecules, file_record
from fairchem_kit.data.sources import register
from fairchem_kit.data.split import TEST, TRAIN
from fairchem_kit.data.units import IN_EV
from fairchem_kit.data.writer import DataSet
from fairchem_kit.words import counted

UNITS = ("file", "eV")
REFERENCES = ("mean", "none")


@register
@dataclass(frozen=True)
class Md17(MoleculeSource):
    """Frames of one molecule, from npz files; several are concatenated, and indices count through
    them.

    Attributes:
        test_file: npz file of the test frames, never mixed with the others.
        labels: ``file``, or ``original`` for the MD17 labels that rMD17 files also have.
        units: ``file`` (kcal/mol, kcal/mol/A) or ``eV``.
        reference: ``mean`` of the training energies is subtracted, or ``none``.
    """

    description = (
        "Convert the frames of one molecule: 950 for training, 50 for validation and all "
        "others for test, unless other numbers, index files or a test file are given."
    )
    default_split = (950, 50, None)  # the paper's

    test_file: str | None = None
    labels: str = "file"
    units: str = "file"
    reference: str = "mean"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("inputs", nargs="+", metavar="FILE.npz", help="MD17, rMD17 or CCSD(T) layout")
        add("--test-file", metavar="FILE.npz", help="test frames, never mixed with the others")
        add(
            "--labels",
            choices=LABELS,
            default="file",
            help="original: the MD17 labels, which rMD17 files have as old_energies and old_forces "
            "(default: file)",
        )
        add(
            "--units",
            choices=UNITS,
            default="file",
            help="file: keep kcal/mol and kcal/mol/A; eV: convert to eV and eV/A (default: file)",
        )
        add(
            "--reference",
            choices=REFERENCES,
            default="mean",
            help="subtracted from the energies: the mean of the training frames, recorded in "
            "dataset.json, or nothing (default: mean)",
        )

    def paths(self, inputs: Sequence[str | Path]) -> list[str | Path]:
        return [*inputs, *([self.test_file] if self.test_file else [])]

    def read(self, inputs: Sequence[str | Path], progress: bool) -> DataSet:
        _check_options(inputs, self)
        trajectories = [read_trajectory(path, self.labels) for path in self.paths(inputs)]
        unit = "eV" if self.units == "eV" else trajectories[0].unit
        molecules = join(trajectories, IN_EV[trajectories[0].unit] / IN_EV[unit])
        before = sum(map(len, trajectories[: len(inputs)]))
        splits, split_record = _split(trajectories, before, self)
        used = np.concatenate(list(splits.values()))
        advice = "download the file again, or leave the frame out with --train-indices ..."
        check_molecules(molecules, used, advice)
        reference = _reference(molecules.labels["y"][splits[TRAIN]], self.reference, unit)
        energies = molecules.labels["y"] - reference.get("constant", 0.0)
        # counted through the inputs; from 0 again in the test file
        fids = np.arange(len(molecules))
        fids[before:] -= before
        double = self.reference == "none"
        molecules = replace(molecules, labels={"y": energies}, fid=fids, double=double)
        own = "train and val" if self.test_file else "all splits"  # of the inputs' frames
        entry = {
            "labels": _labels(trajectories[0], self.labels),
            "energy_reference": reference,
            "sources": [
                {
                    **file_record(t.path),
                    "layout": t.layout,
                    "frames": len(t),
                    "for": TEST if number == len(inputs) else own,
                    "notes": t.notes,
                }
                for number, t in enumerate(trajectories)
            ],
            "split": split_record,
        }
        systems = {_name(trajectories[0]): _system(trajectories, splits, reference, unit)}
        units = {"y": unit, "force": f"{unit}/A", "pos": "A", "cell": "A"}
        return DataSet(molecules, splits, entry, systems, units=units)


def _check_options(files: Sequence[str | Path], options: Md17) -> None:
    for name, value, allowed in (
        ("--labels", options.labels, LABELS),
        ("--units", options.units, UNITS),
        ("--reference", options.reference, REFERENCES),
    ):
        if value not in allowed:
            raise DataError(f"{name} {value}: give one of {', '.join(allowed)}")
    if not files:
        raise DataError("no files; give MD17's npz files")
    resolved = [Path(path).resolve() for path in [*files, options.test_file] if path is not None]
    if len(set(resolved)) < len(resolved):
        raise DataError("the same file is given twice; its frames would be in two splits")
    names = {Path(path).name for path in files}
    for name in sorted(names):
        partner = re.sub("train", "test", name)
        if partner != name and partner in names:
            raise DataError(
                f"{name} and {partner} are the training and test frames of one set, which must not "
                f"be mixed; give the second as --test-file {partner}"
            )
    if options.test_file and options.split.by_file:
        raise DataError("--test-file and index files contradict each other; give one of them")


def _split(
    trajectories: Sequence[Trajectory], before: int, options: Md17
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Rows of each split among all frames; those of the test file come last."""
    split, source = options.split, ", ".join(t.path for t in trajectories if t.path)
    if options.test_file is None:
        return make_split(before, split, Md17.default_split, source)
    source = ", ".join(t.path for t in trajectories[:-1])
    splits, record = make_split(before, replace(split, test=0), Md17.default_split, source)
    last = trajectories[-1]
    rows = np.arange(len(last))
    if split.test is not None:  # the first of a permutation, as for the other splits
        chosen = SplitOptions(train=split.test, val=0, test=0, seed=split.seed)
        rows = np.sort(random_split(len(last), chosen, Md17.default_split, last.path)[TRAIN])
    record["indices_sha256"][TEST] = indices_hash(rows)
    record["test_file_unused"] = len(last) - len(rows)
    splits[TEST] = rows + before
    _check_disjoint(trajectories, splits, before)
    return splits, record


def _check_disjoint(
    trajectories: Sequence[Trajectory], splits: dict[str, np.ndarray], before: int
) -> None:
    """Refuse frames of the test file that are also in training or validation."""
    learnt = np.concatenate([rows for name, rows in splits.items() if name != TEST])
    tested = splits[TEST]
    last = trajectories[-1]
    checks = {last.keys["positions"]: [t.positions for t in trajectories]}
    if all(t.old_indices is not None for t in trajectories):
        checks["old_indices"] = [t.old_indices for t in trajectories]
    for key, arrays in checks.items():
        values = np.concatenate(arrays)
        rows = [values[i].tobytes() for i in learnt]
        known = dict(zip(rows, learnt))
        double = [(i, known[values[i].tobytes()]) for i in tested if values[i].tobytes() in known]
        if double:
            test, train = double[0]
            raise DataError(
                f"{last.path}: `{key}`: record {test - before} is also a training or validation "
                f"frame (frame {train} of {', '.join(t.path for t in trajectories[:-1])}), "
                f"{counted(len(double), 'such record')}; give the test file that belongs to the "
                "training file, or split one file with --train, --val and --test"
            )


def _reference(energies: np.ndarray, mode: str, unit: str) -> dict[str, Any]:
    if mode == "none":
        return {"kind": "none"}
    constant = float(energies.mean())
    return {"kind": "mean", "fitted_on": TRAIN, "constant": constant, "unit": unit}


def _labels(trajectory: Trajectory, labels: str) -> dict[str, Any]:
    """Where the labels come from."""
    keys = {"energy": trajectory.keys["y"], "forces": trajectory.keys["forces"]}
    return {"choice": labels, "keys": keys, "unit_in_file": trajectory.unit}


def _name(trajectory: Trajectory) -> str:
    return trajectory.notes.get("name") or Path(trajectory.path).stem


def _system(
    trajectories: Sequence[Trajectory],
    splits: dict[str, np.ndarray],
    reference: dict[str, Any],
    unit: str,
) -> dict[str, Any]:
    """The entry of systems.json."""
    from ase.symbols import Symbols

    entry: dict[str, Any] = {
        "sid": 0,
        "formula": Symbols(trajectories[0].numbers.astype(int)).get_chemical_formula(),
        "source": [t.path for t in trajectories],
        "split": sorted(name for name, rows in splits.items() if len(rows)),
        "frames": sum(map(len, splits.values())),
    }
    if "constant" in reference:
        entry[f"reference_energy_{unit.replace('/', '_')}"] = reference["constant"]
    return entry
