"""Compare the configuration with the data: metadata, labels, normalizers. Reads few records."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fairchem.core.common import distutils
from fairchem.core.common.registry import registry
from torch_geometric.data import Data

from fairchem_kit.data.split_record import element_problem, reference_problem, split_record
from fairchem_kit.history.validation_sets import KEY as VALIDATION_SPLITS
from fairchem_kit.history.validation_sets import extra_validation_splits
from fairchem_kit.npz import DAMAGED, check_npz
from fairchem_kit.training.checks.labels import SWITCH, label_problems, switched_off
from fairchem_kit.training.checks.messages import ConfigError, shown, warn
from fairchem_kit.training.checks.sections import SPLITS
from fairchem_kit.units.agreement import differences
from fairchem_kit.units.columns import data_unit
from fairchem_kit.words import counted

RECORDS = 64  # number of records to read from the training split
SHARDS = 8  # files to open of a split with more than ALL_SHARDS files
ALL_SHARDS = 64


def balancing_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """``load_balancing: atoms`` without the numbers of atoms that it needs, and npz files with
    code that fairchem would run."""
    for split, section in splits(config):
        for path in filter(Path.is_file, _metadata_paths(section)):
            try:
                check_npz(path, ConfigError)
            except ConfigError as error:
                yield f"{split}: {error}"
    optim = config["optim"]
    mode, on_error = optim.get("load_balancing"), optim.get("load_balancing_on_error")
    if mode is None or on_error not in (None, "raise"):
        return
    for split, section in splits(config):
        paths = _metadata_paths(section)
        if paths and not any(path.is_file() for path in paths):
            yield (
                f"optim.load_balancing: {mode} needs the number of atoms of every structure of "
                f"{split}, but {paths[0]} does not exist. `ndem data` writes it together with the "
                "LMDBs; without it, set optim.load_balancing: null."
            )


def splits(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(dotted key, section that the reader gets) for every split with data.

    Sections are merged as in fairchem.
    """
    train = config.get("dataset") or {}
    for key, split in SPLITS.items():
        section = config.get(key) or {}
        if "src" not in section:
            continue
        if split != "train" and section.get("use_train_settings", True):
            section = {**train, **section}
        own = (section.get("splits") or {}).get(split) or section.get(f"{split}_split_settings")
        yield f"dataset.{split}", {**section, **(own or {})}
    more = (config.get("task") or {}).get(VALIDATION_SPLITS) or {}
    for name, section in zip(more, extra_validation_splits(config).values()):
        yield f"task.{VALIDATION_SPLITS}.{name}", section


def _sources(section: Mapping[str, Any]) -> list[Path]:
    source = section["src"]
    return [Path(path) for path in ([source] if isinstance(source, (str, Path)) else source)]


def _metadata_paths(section: Mapping[str, Any]) -> list[Path]:
    if section.get("metadata_path") is not None:
        return [Path(section["metadata_path"])]
    folders = [path.parent if path.is_file() else path for path in _sources(section)]
    return [folder / "metadata.npz" for folder in folders]


def record_problems(config: Mapping[str, Any], train: bool = True) -> list[str]:
    """Open every split and read up to ``RECORDS`` records of the training split.

    Args:
        config: a trainer's configuration, its normalizers in numbers.
        train: whether this run trains; otherwise no labels are needed.
    """
    problems = [*_unit_problems(config), *(_agreement_problems(config) if train else ())]
    for split, section in splits(config):
        try:
            problems += _split_problems(config, split, section, train)
        except Exception as error:
            problems.append(
                f"{split}.src = {shown(section['src'])} cannot be read as format: "
                f"{section.get('format', 'lmdb')} ({type(error).__name__}: {error})."
            )
    return problems


def _unit_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Labels in another unit than the configuration says, and relaxations that are not in eV."""
    outputs = config.get("outputs") or {}
    for where, section in splits(config):
        if where == "dataset.test":  # predictions need no labels
            continue
        if where == "dataset.relax":
            unit = data_unit("forces", outputs.get("forces") or {})
            if unit != "eV/A":
                yield (
                    f"{where}: fairchem's relaxations need forces in eV/A, but outputs.forces.unit "
                    f"is {unit}; `ndem relax` takes models in any unit."
                )
            continue
        for record in map(split_record, _sources(section)):
            for name, has, wants, _ in differences(outputs, record):
                yield (
                    f"{where}: the labels {name!r} of {record.path} are in {has} (dataset.json), "
                    f"but outputs.{name}.unit is {wants}: set it to {has}, or convert the data "
                    "again."
                )


def _agreement_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Validation data whose energies have another reference than the training data.

    Warns about elements that are not in the training data. Both are read from dataset.json.
    """
    sections = dict(splits(config))
    if "dataset.train" not in sections:
        return
    trains = [split_record(path) for path in _sources(sections.pop("dataset.train"))]
    switch_off = switched_off(config.get("task") or {}) or "energy" not in config.get("outputs", ())
    for where, section in sections.items():
        for record in map(split_record, _sources(section)):
            for train in trains:
                problem = reference_problem(train, record)
                if problem is not None and switch_off:
                    warn(f"{where}: {problem}.")
                elif problem is not None:
                    yield f"{where}: {problem}, or continue with {SWITCH}: off."
            together = [train.elements for train in trains]
            if None not in together:
                whole = replace(trains[0], elements=frozenset().union(*together))
                problem = element_problem(whole, record)
                if problem is not None:
                    warn(f"{where}: {problem}.")


def _split_problems(
    config: Mapping[str, Any], split: str, section: Mapping[str, Any], train: bool
) -> list[str]:
    # An LMDB can only be opened once in a process, so it must be closed when this returns.
    parts = _open(section)
    problems = list(_metadata_problems(section, parts, split))
    if split == "dataset.train" and train and not problems:
        records = list(_spread_records(parts, section))
        problems += label_problems(config, records, _stored_statistics(section, parts))
        _warn_about_length(config, section, parts)
    return problems


def _open(section: Mapping[str, Any]) -> list[Any]:
    """One dataset for the whole split, or several for some of its files if there are many."""
    reader = registry.get_dataset_class(section.get("format", "lmdb"))
    (source, *more) = _sources(section)
    files = sorted(source.glob("*.lmdb")) if not more and source.is_dir() else []
    plain = {key: value for key, value in section.items() if not key.endswith("splits")}
    if len(files) <= ALL_SHARDS:
        return [reader(plain)]
    chosen = np.linspace(0, len(files) - 1, SHARDS).astype(int)
    return [reader({**plain, "src": str(files[i])}) for i in chosen]


def _metadata_problems(section: Mapping[str, Any], parts: list[Any], where: str) -> Iterator[str]:
    paths = [path for path in _metadata_paths(section) if path.is_file()]
    try:
        count = sum(len(np.load(path)["natoms"]) for path in paths)
    except (KeyError, TypeError, *DAMAGED) as error:
        yield f"{where}: {paths[0]} has no readable natoms ({type(error).__name__}: {error})."
        return
    if paths and len(parts) == 1 and count != len(parts[0]):
        yield (
            f"{where}: {', '.join(map(str, paths))} lists {counted(count, 'structure')}, but the "
            f"data has {len(parts[0])}: they are from different conversions. Convert again, or "
            "delete metadata.npz and set optim.load_balancing: null."
        )


def _stored_statistics(section: Mapping[str, Any], parts: list[Any]) -> Mapping[str, Any] | None:
    """The statistics of the whole training split in its dataset.json, which ``ndem data check``
    prints; None if they are not for these records."""
    sources = _sources(section)
    if len(sources) != 1 or sources[0].is_file() or _structures(section, parts) is None:
        return None
    record = split_record(sources[0])
    return record.statistics if record.frames == _structures(section, parts) else None


def _spread_records(parts: list[Any], section: Mapping[str, Any]) -> Iterator[Data]:
    """Evenly spaced records. Unreadable ones only give a warning; the run handles them itself."""
    errors: list[str] = []  # strings, because an exception object would keep the data set open
    read = 0
    for part in parts:
        count = len(part)
        if isinstance(section.get("first_n"), int):
            count = min(count, section["first_n"])
        wanted = min(count, RECORDS // len(parts))
        for index in np.linspace(0, count - 1, wanted).astype(int) if wanted else ():
            try:
                record = part[int(index)]
            except Exception as error:
                errors.append(f"record {index}: {type(error).__name__}: {error}")
                continue
            read += 1
            yield record
    if errors:
        warn(
            f"dataset.train: {len(errors)} of {counted(read + len(errors), 'record')} could not "
            "be read."
        )
        if not read:
            raise ValueError(errors[0])


def _warn_about_length(
    config: Mapping[str, Any], section: Mapping[str, Any], parts: list[Any]
) -> None:
    """Warn if the run will end before its first validation."""
    count = _structures(section, parts)
    optim = config["optim"]
    if count is None or "eval_every" not in optim:
        return
    batch = optim.get("batch_size", 1) * max(distutils.get_world_size(), 1)
    steps = math.ceil(count / batch) * optim["max_epochs"]
    if optim["eval_every"] > steps:
        logging.warning(
            f"This run has {counted(steps, 'step')} ({counted(count, 'structure')}, {batch} per "
            f"step, {counted(optim['max_epochs'], 'epoch')}) and optim.eval_every is "
            f"{optim['eval_every']}: it ends without a validation and without best_checkpoint.pt. "
            "Lower optim.eval_every."
        )


def _structures(section: Mapping[str, Any], parts: list[Any]) -> int | None:
    """Number of structures in an epoch; None if it is unknown because of a selection."""
    if section.get("max_atoms") is not None or section.get("subset_to"):
        return None
    if len(parts) == 1:
        count = len(parts[0])
    else:
        paths = [path for path in _metadata_paths(section) if path.is_file()]
        if not paths:
            return None
        count = sum(len(np.load(path)["natoms"]) for path in paths)
    chosen = [section.get(key) for key in ("first_n", "sample_n")]
    return min([count, *(number for number in chosen if isinstance(number, int))])
