"""Information on one split from dataset.json, and whether two splits are compatible."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .errors import DataError
from .reference import FILE_NAME, fingerprint, load_linear
from .staging import DATASET_FILE, SYSTEMS_FILE, read_json
from .units import split_folder


@dataclass(frozen=True)
class SplitRecord:
    """Information on a split that is known without reading its records.

    Attributes:
        path: of the split. reference: subtracted from its energies, as ``kind`` and what else
            distinguishes two references; None if unknown. elements: atomic numbers, None if
            unknown. frames: their number, None if unknown. statistics: as printed by ``ndem data
            check``, or None. units: by name of the field, such as ``y`` and ``force``; None if
            unknown.
    """

    path: Path
    reference: Mapping[str, Any] | None = None
    elements: frozenset[int] | None = None
    frames: int | None = None
    statistics: Mapping[str, Any] | None = None
    units: Mapping[str, str] | None = None


def split_record(path: str | Path) -> SplitRecord:
    """The information on a split, or on one of its LMDB files; empty for data from other tools.

    Of initial structures (``ndem data is2re``) only the reference is known.
    """
    split = split_folder(Path(path))
    with contextlib.suppress(DataError, AttributeError):
        given = read_json(split / DATASET_FILE).get("energy_reference")
        if isinstance(given, str):
            kind = given if given in ("none", "last-frame") else "linear"
            return SplitRecord(split, identified({"kind": kind, "file": given}, split))
    try:
        content = read_json(split.parent / DATASET_FILE)
        systems = read_json(split.parent / SYSTEMS_FILE)
        for conversion in reversed(content.get("conversions", [])):
            if split.name in conversion["splits"]:
                record = _record(split, conversion, systems)
                return replace(record, units=content.get("units"))
    except (DataError, AttributeError, KeyError, TypeError):  # no dataset.json from these tools
        pass
    return SplitRecord(split)


def _record(split: Path, conversion: Mapping[str, Any], systems: Mapping[str, Any]) -> SplitRecord:
    counts = conversion["splits"][split.name]
    elements = counts.get("elements")
    if elements is None:  # written before dataset.json had them
        elements = _elements_of(s["formula"] for s in systems.values() if split.name in s["split"])
    return SplitRecord(
        split,
        identified(conversion.get("energy_reference"), split.parent),
        frozenset(elements) or None,
        counts.get("frames"),
        (conversion.get("statistics") or {}).get(split.name),
    )


def _elements_of(formulas: Iterable[str]) -> set[int]:
    from ase.data import atomic_numbers

    symbols = {symbol for formula in formulas for symbol in re.findall("[A-Z][a-z]?", formula)}
    return {atomic_numbers[symbol] for symbol in symbols}


def identified(reference: Mapping[str, Any] | None, folder: Path) -> dict[str, Any] | None:
    """The parts of a reference by which two references differ.

    Args:
        reference: as in dataset.json. folder: of the data set, with its own reference file.
    """
    if reference is None:
        return None
    known = {"kind": reference["kind"]}
    if known["kind"] == "linear":
        known["sha256"] = reference.get("sha256")
        file = Path(reference.get("file") or FILE_NAME)
        file = folder / FILE_NAME if reference.get("fitted_on") else file
        if known["sha256"] is None and file.is_file():  # written before dataset.json had it
            with contextlib.suppress(DataError):
                known["sha256"] = fingerprint(*load_linear(file))
    if known["kind"] == "mean":
        known |= {"constant": reference["constant"], "unit": reference["unit"]}
    return known


def references_differ(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> bool:
    """Whether two references from :func:`identified` are known to be different."""
    if first is None or second is None:
        return False
    if first["kind"] != second["kind"]:
        return True
    values = ((first.get(key), second.get(key)) for key in ("sha256", "constant", "unit"))
    return any(None not in pair and pair[0] != pair[1] for pair in values)


def in_words(reference: Mapping[str, Any]) -> str:
    """A reference in words, for a message."""
    if reference["kind"] == "linear":
        return f"linear, coefficients {(reference.get('sha256') or 'unknown')[:8]}"
    if reference["kind"] == "mean":
        return f"mean, {reference['constant']:.6g} {reference['unit']}"
    return str(reference["kind"])


def reference_problem(train: SplitRecord, other: SplitRecord) -> str | None:
    """A sentence if the energies of two splits have different references, else None."""
    if train.reference is None or other.reference is None:
        return None
    if not references_differ(train.reference, other.reference):
        return None
    return (
        f"the energies of {other.path} have another reference ({in_words(other.reference)}) than "
        f"those of {train.path} ({in_words(train.reference)}), so energy errors are off by the "
        "difference; convert one of them again with the other's --energy-reference"
    )


def element_problem(train: SplitRecord, other: SplitRecord) -> str | None:
    """A sentence if a split has elements that training does not have, else None."""
    if train.elements is None or other.elements is None:
        return None
    more = symbols(other.elements - train.elements)
    if not more:
        return None
    return (
        f"{other.path} has elements that {train.path} does not have: {more}. A model's prediction "
        "for them comes from an embedding that is never trained"
    )


def symbols(elements: Iterable[int]) -> str:
    """Chemical symbols, by atomic number."""
    from ase.data import chemical_symbols

    return " ".join(chemical_symbols[z] for z in sorted(elements))
