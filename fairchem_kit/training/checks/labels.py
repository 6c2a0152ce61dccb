"""Compare the labels of some records with ``outputs`` and the normalizers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from fairchem.core.modules.normalization.element_references import create_element_references
from fairchem.core.modules.normalization.normalizer import create_normalizer
from torch import Tensor
from torch_geometric.data import Data

from fairchem_kit.data.accumulator import Accumulator
from fairchem_kit.data.fields import QM9_UNITS
from fairchem_kit.training.checks.messages import hint, shown, warn

ENERGY, FORCES = "energy", "forces"
KEY = "dataset.train.transforms.normalizer"
SWITCH = "task.normalizer_check"
FACTOR = 50  # OC20's published normalizer is 10 times the rms of its forces, and works
FEWEST = 8  # with fewer values a standard deviation is meaningless


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of ``count`` label values, in the data's unit.

    ``source`` describes these values in messages.
    """

    count: int
    mean: float
    stdev: float
    source: str


def switched_off(task: Mapping[str, Any]) -> bool:
    """Whether ``task.normalizer_check`` is off; YAML reads a bare off as False."""
    return task.get("normalizer_check") in (False, "off")


def switch_problems(task: Any) -> Iterator[str]:
    """A value of ``task.normalizer_check`` other than on and off."""
    value = task.get("normalizer_check") if isinstance(task, Mapping) else None
    if not (value is None or isinstance(value, bool) or value in ("on", "off")):
        yield f"{SWITCH} = {shown(value)}: write on or off."


def label_problems(
    config: Mapping[str, Any], records: list[Data], stored: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """Missing labels, and normalizers that do not fit the labels.

    Args:
        config: a trainer's configuration. records: some records of the training split.
        stored: the statistics of the whole split in dataset.json.
    """
    if not records:
        return
    transforms = (config.get("dataset") or {}).get("transforms") or {}
    normalizer = transforms.get("normalizer") or {}
    references = transforms.get("element_references") or {}
    for name, output in (config.get("outputs") or {}).items():
        labelled = [record for record in records if record.get(name) is not None]
        if not labelled:
            if "decomposition" not in output:
                yield _no_label(name, records[0])
            continue
        if switched_off(config.get("task") or {}) or "file" in normalizer:
            continue
        if name in references.get("fit", {}).get("targets", ()) or "file" in references:
            continue  # its references are only known after the data has been read
        if name in normalizer.get("fit", {}).get("targets", ()):
            continue
        found = _statistics(labelled, name, references.get(name), stored)
        if found is not None:
            yield from _compare(name, found, normalizer, output)


def _no_label(name: str, record: Data) -> str:
    keys = sorted(record.keys())
    return (
        f"outputs.{name}: the records of dataset.train have no {name!r} (they have: "
        f"{', '.join(keys)}). {hint(name, keys)} dataset.train.key_mapping renames "
        "keys of records, as in {y: energy, force: forces}."
    )


def _statistics(
    records: list[Data], name: str, reference: Any, stored: Mapping[str, Any] | None
) -> Statistics | None:
    """Statistics of a label over the whole split, or else over some records; None without values.

    Forces are those on free atoms, as in ``ndem data check``.
    """
    if reference is None:
        known = _known(stored, name, f"the {(stored or {}).get('frames')} labels of")
        if known is None and (name in (ENERGY, FORCES) or name in QM9_UNITS):
            known = _known(_accumulated(records, name), name, f"{len(records)} labels spread over")
        if known is not None:
            return known
    linear = create_element_references(**reference).element_references if reference else None
    values = []
    for record in records:
        value = torch.as_tensor(record[name], dtype=torch.float64)
        if linear is not None:
            value = value - linear[record.atomic_numbers.long()].double().sum()
        values.append(value.flatten())
    joined = torch.cat(values)
    joined = joined[joined.isfinite()]
    if joined.numel() == 0:
        return None
    stdev = joined.std(correction=0).item()
    source = f"{joined.numel()} labels spread over"
    return Statistics(joined.numel(), joined.mean().item(), stdev, source)


def _accumulated(records: list[Data], name: str) -> dict[str, Any] | None:
    """The statistics of some records, without labels that are not finite.

    None if labels have another shape than energies and forces.
    """
    total = Accumulator()
    try:
        for record in records:
            fields = {key: record[key] for key in record.keys()}  # noqa: SIM118 (a Data, no dict)
            if bool(torch.as_tensor(fields[name], dtype=torch.float64).isfinite().all()):
                total.add(fields)
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return None
    result = total.result()
    return None if result is None else result.as_dict()


def _known(stored: Mapping[str, Any] | None, name: str, source: str) -> Statistics | None:
    """A label's part of the statistics of a data set."""
    if stored is None:
        return None
    count = stored["frames"]
    if name == ENERGY and stored.get("energy_stdev") is not None:
        return Statistics(count, stored["energy_mean"], stored["energy_stdev"], source)
    if name == FORCES and stored.get("force_rms") is not None:
        return Statistics(3 * stored["free_atoms"], 0.0, stored["force_rms"], source)
    if name in (stored.get("targets") or {}):
        return Statistics(count, *stored["targets"][name], source)
    return None


def _compare(
    name: str, found: Statistics, normalizer: Mapping[str, Any], output: Mapping[str, Any]
) -> Iterator[str]:
    given = normalizer.get(name)
    mean = 0.0 if output.get("level") == "atom" else found.mean
    paste = f"{name}: {{mean: {mean:.4g}, stdev: {found.stdev or 1.0:.4g}}}"
    if given is None:
        far = not 1 / FACTOR <= (found.stdev or 1.0) <= FACTOR or abs(found.mean) > FACTOR
        if far and found.count >= FEWEST:
            warn(
                f"{KEY}.{name} is missing, but the labels are far from unit scale (mean "
                f"{found.mean:.4g}, standard deviation {found.stdev:.4g}), so that training would "
                f"start badly. Write {KEY}: {{{paste}}}."
            )
        return
    numbers = _numbers(given)
    if isinstance(numbers, str):
        yield f"{KEY}.{name}{numbers} Write {paste}."
        return
    mean, stdev = numbers
    reasons = []
    if found.count >= FEWEST and found.stdev > 0:
        ratio = stdev / found.stdev
        if not 1 / FACTOR <= ratio <= FACTOR:
            times = f"{ratio:.3g} times" if ratio > 1 else f"1/{1 / ratio:.3g} of"
            reasons.append(f"its stdev is {times} the labels'")
    if abs(found.mean - mean) > FACTOR * stdev:
        away = abs(found.mean - mean) / stdev
        reasons.append(f"the labels' mean differs from its mean by {away:.3g} of its stdev")
    if not reasons:
        return
    sentence = (
        f"{KEY}.{name} has mean {mean:.4g} and stdev {stdev:.4g}, but {found.source} "
        f"the training split have mean {found.mean:.4g} and standard deviation "
        f"{found.stdev:.4g}: {', and '.join(reasons)}. Is a unit wrong, or is it from another data "
        f"set? Write {paste}, or continue with {SWITCH}: off."
    )
    if name == "energy" and len(reasons) == 1 and "stdev is" in reasons[0]:
        forces = _numbers(normalizer.get("forces") or {})
        if not isinstance(forces, str) and forces[1] == stdev:
            # Gradient forces need the same scale as the energy; that of the forces decides.
            warn(sentence)
            return
    yield sentence


def _numbers(given: Any) -> tuple[float, float] | str:
    """(mean, stdev) in a normalizer's section, or the rest of a sentence on what is wrong."""
    if not isinstance(given, Mapping):
        return f" = {shown(given)} must have mean and stdev."
    if given.get("file") is not None:
        if not Path(given["file"]).is_file():
            return f".file = {shown(given['file'])}: there is no such file (from {Path.cwd()})."
        read = create_normalizer(file=given["file"])
        mean, stdev = _float(read.mean), _float(read.rmsd)
    else:
        mean, stdev = given.get("mean"), given.get("rmsd", given.get("stdev"))
    for key, value in (("mean", mean), ("stdev", stdev)):
        if isinstance(value, bool) or not isinstance(value, Real):
            return f".{key} = {shown(value)} must be a number."
    if not stdev > 0:
        return f".stdev = {stdev} must be above 0, because labels are divided by it."
    return float(mean), float(stdev)


def _float(value: Tensor) -> float:
    return value.double().mean().item()
