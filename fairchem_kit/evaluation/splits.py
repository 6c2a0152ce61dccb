"""The splits of an evaluation: directories of LMDBs, read like the data of the checkpoint's run."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairchem_kit.data.split_record import (
    SplitRecord,
    element_problem,
    reference_problem,
    split_record,
)
from fairchem_kit.evaluation.errors import EvaluationError
from fairchem_kit.evaluation.tables import MEAN
from fairchem_kit.files import existing

if TYPE_CHECKING:
    from fairchem_kit.units.agreement import Difference

# Keys that select records of a run or say where it writes: not used in an evaluation.
_OF_THE_RUN = (
    *("src", "bad_records_log", "first_n", "sample_n", "max_atoms", "max_atom", "splits"),
    *("shard", "total_shards", "subset_to"),
    *(f"{split}_split_settings" for split in ("train", "val", "test")),
)
_READER = "ndem_lmdb"
ENERGY = "energy"
_FAIRCHEM_LMDB = ("lmdb", "single_point_lmdb", "trajectory_lmdb")


@dataclass(frozen=True)
class Split:
    """A directory of LMDBs or one LMDB file, and its name in files and tables."""

    name: str
    path: Path


def read_splits(given: Sequence[str]) -> list[Split]:
    """Splits from ``DIR`` or ``NAME=DIR`` arguments; without NAME, the directory's name is used.

    Raises:
        EvaluationError: a path that does not exist, or two splits with the same name.
    """
    splits = []
    for word in given:
        name, equals, rest = word.partition("=")
        unnamed = not equals or "/" in name or Path(word).exists()  # a path may contain the sign
        path = Path(word if unnamed else rest)
        existing(path, EvaluationError)
        splits.append(Split("" if unnamed else name, path))
    return _named(splits)


def look_inside(path: Path) -> None:
    """Look at the path of a split, which takes no time, before a model is loaded.

    Raises:
        EvaluationError: an empty directory, or one that contains the directories of splits.
    """
    if not path.is_dir():
        return
    if not any(path.iterdir()):
        raise EvaluationError(f"{path}: no *.lmdb files; this directory is empty.")
    below = sorted({file.parent for file in path.glob("*/*.lmdb")})
    if below and not any(path.glob("*.lmdb")):
        raise EvaluationError(
            f"{path} contains several splits; name those that you mean: {' '.join(map(str, below))}"
        )


def _named(splits: list[Split]) -> list[Split]:
    short = [split.name or split.path.resolve().stem for split in splits]
    counts = Counter(short)
    named = []
    for split, name in zip(splits, short):
        if counts[name] > 1 and not split.name:  # aspirin/test and ethanol/test
            name = f"{split.path.resolve().parent.name}-{name}"
        named.append(Split(re.sub(r"[^A-Za-z0-9._-]+", "-", name), split.path))
    twice = [name for name, count in Counter(split.name for split in named).items() if count > 1]
    if twice:
        raise EvaluationError(
            f"two splits are called {twice[0]!r}: name them, --data NAME=DIR NAME2=DIR2."
        )
    taken = next((split for split in named if split.name == MEAN), None)
    if taken is not None:
        raise EvaluationError(
            f"{taken.path}: the row {MEAN!r} of the table is the mean over the splits; give this "
            f"one another name, --data NAME={taken.path}."
        )
    return named


def dataset_section(config: dict[str, Any], source: Path) -> dict[str, Any]:
    """The ``dataset`` section with which fairchem's validation would read ``source``.

    Args:
        config: of the checkpoint; its validation section overrides that of the training data.
        source: directory or file.
    """
    train, val = config.get("dataset") or {}, config.get("val_dataset") or {}
    section = {**train, **val} if val.get("use_train_settings", True) else dict(val)
    section = {key: value for key, value in section.items() if key not in _OF_THE_RUN}
    section |= {"src": str(source), "no_shuffle": True}  # fairchem shuffles, validation included
    if section.get("format") == _READER:
        section["on_bad_record"] = "raise"  # a replacement would be counted twice
    return section


def _opened(section: dict[str, Any]) -> Any:
    """The data set of a section, with a reader that does not run code in the files.

    fairchem's own LMDB readers execute the records' pickles; this package's reader gives the same
    records. They are not checked otherwise here.
    """
    from fairchem.core.datasets import create_dataset

    if section.get("format", "lmdb") in _FAIRCHEM_LMDB:
        section = {**section, "format": _READER, "checks": "none", "on_bad_record": "raise"}
    return create_dataset(section, "val")


def open_split(config: dict[str, Any], split: Split, needs: Sequence[str] = ()) -> Any:
    """Open the data set of a split and check its first record.

    Labels in another unit than the model's outputs are converted to it.

    Args:
        config: of the checkpoint. split: what to open.
        needs: labels that the records must have.

    Raises:
        EvaluationError: no records, or records without these labels.
        DataError: a file that cannot be read.
    """
    dataset = _opened(dataset_section(config, split.path))
    if len(dataset) == 0:
        raise EvaluationError(f"{split.path}: no records.")
    first = dataset[0]
    missing = [name for name in needs if name not in first]
    if missing:
        has = ", ".join(sorted(map(str, first.keys())))
        raise EvaluationError(
            f"{split.path}: its first record has no label {missing[0]!r}, which the checkpoint's "
            f"model predicts (it has: {has}). For a test split without labels use `ndem submission "
            "write`."
        )
    factors = {
        found.output: found.factor for found in _differences(config, split_record(split.path))
    }
    return InUnits(dataset, factors) if factors else dataset


class InUnits:
    """A data set whose labels are multiplied by factors, by name of the output."""

    def __init__(self, dataset: Any, factors: Mapping[str, float]) -> None:
        self.dataset, self.factors = dataset, factors

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        record = copy.copy(self.dataset[index])
        for name, factor in self.factors.items():
            if name in record:
                record[name] = record[name] * factor
        return record


def disagreements(config: dict[str, Any], split: Split) -> list[str]:
    """Warnings if a split does not match the training data, as far as their dataset.json still
    exist: another energy reference, elements that were not in training, other units."""
    sources = (config.get("dataset") or {}).get("src") or []
    trains = [split_record(s) for s in ([sources] if isinstance(sources, str) else sources)]
    record = split_record(split.path)
    problems = [reference_problem(t, record) for t in trains if ENERGY in config.get("outputs", ())]
    if len(trains) == 1:
        problems.append(element_problem(trains[0], record))
    problems += [
        f"the labels {name!r} of {split.path} are in {has}; they are converted to {wants}, the "
        "checkpoint's unit"
        for name, has, wants, _ in _differences(config, record)
    ]
    return [problem for problem in problems if problem is not None]


def _differences(config: dict[str, Any], record: SplitRecord) -> tuple[Difference, ...]:
    from fairchem_kit.units.agreement import differences

    return differences(config.get("outputs") or {}, record)


def open_relaxations(config: dict[str, Any], split: Split) -> Any:
    """The data set of a split of initial structures, in OC20's IS2RE layout.

    Raises:
        EvaluationError: no records, or records of single points.
        DataError: a file that cannot be read.
    """
    from fairchem_kit.data.sources.is2re import KEY_MAPPING

    section = dataset_section(config, split.path)
    section["key_mapping"] = {**(section.get("key_mapping") or {}), **KEY_MAPPING}
    dataset = _opened(section)
    if len(dataset) == 0:
        raise EvaluationError(f"{split.path}: no records.")
    first = dataset[0]
    _refuse_single_points(split, first)
    return dataset


def look_for_relaxations(split: Split) -> None:
    """Look at the path and the first record of LMDBs, as :func:`look_inside`.

    Raises:
        EvaluationError: as there; or the record is a single point, or cannot be read.
    """
    look_inside(split.path)
    from fairchem_kit.data.aselmdb import RecordFile
    from fairchem_kit.data.errors import DataError
    from fairchem_kit.data.reader.errors import Refused

    files = [split.path] if split.path.is_file() else sorted(split.path.glob("*.lmdb"))
    if not files or files[0].suffix != ".lmdb":
        return  # another format, which fairchem will open
    try:
        with RecordFile(files[0]) as file:
            first = file.fields(0) if file.count else {}
    except (DataError, Refused) as error:
        raise EvaluationError(f"{files[0]}: {error}.") from error
    _refuse_single_points(split, first)


def _refuse_single_points(split: Split, first: Any) -> None:
    if ("forces" in first or "force" in first) and "pos_relaxed" not in first:
        raise EvaluationError(
            f"{split.path}: its records are single points with forces (S2EF), not initial "
            "structures (IS2RE). `ndem data is2re` makes these from trajectories."
        )
