"""The file for the OC20 S2EF leaderboard, and checking such a file.

It is one npz with four arrays for each of the splits id, ood_ads, ood_cat and ood_both:

    {split}_ids        (S,) text, one per structure
    {split}_energy     (S,) eV
    {split}_forces     (A, 3) eV/A, all structures concatenated
    {split}_chunk_idx  (S - 1,) integers, where to split forces: np.split(forces, chunk_idx)

Two layouts are in use:

    fairchem     made by fairchem 1.10 (``--mode predict``, then make_submission_file.py) and
                 accepted by EvalAI: forces of the free atoms only, sorted by id as text
    leaderboard  written by the example on the page of fairchem's current leaderboard: forces of
                 all atoms, in the order of the data

Ids are SID_FID, from a record's ``sid`` and ``fid`` as in fairchem (SID if it has no fid).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.evaluation.errors import EvaluationError
from fairchem_kit.npz import DAMAGED
from fairchem_kit.words import counted

SPLITS = ("id", "ood_ads", "ood_cat", "ood_both")
FIELDS = ("ids", "energy", "forces", "chunk_idx")
FAIRCHEM, LEADERBOARD = "fairchem", "leaderboard"
_SHOWN = 3


@dataclass(frozen=True)
class Predictions:
    """Predictions for one split, structure by structure.

    Attributes:
        ids: (S,) text. energy: (S,) eV. forces: (A, 3) eV/A. counts: (S,) rows of each structure.
    """

    ids: np.ndarray
    energy: np.ndarray
    forces: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class PredictedBatch:
    """The predictions for one batch, and its number in the split."""

    number: int
    predictions: Predictions


@dataclass(frozen=True)
class Expected:
    """What the data of a split require: ids, and the number of force rows by id."""

    counts: dict[str, int]


def join(parts: Iterable[Predictions]) -> Predictions:
    """Concatenate parts of a split, in order."""
    parts = list(parts)
    return Predictions(
        *(np.concatenate([getattr(part, name) for part in parts])
          for name in ("ids", "energy", "forces", "counts"))
    )  # fmt: skip


def in_order_of_ids(predictions: Predictions) -> Predictions:
    """Sorted by id as text, as fairchem's ``predict`` does."""
    order = np.argsort(predictions.ids, kind="stable")
    pieces = np.split(predictions.forces, np.cumsum(predictions.counts)[:-1])
    return Predictions(
        predictions.ids[order],
        predictions.energy[order],
        np.concatenate([pieces[i] for i in order]),
        predictions.counts[order],
    )


def arrays_of(
    split: str, predictions: Predictions, layout: str, float16: bool = False
) -> dict[str, np.ndarray]:
    """The arrays of one split in a layout.

    Args:
        split: one of SPLITS. float16: forces in half precision, which halves the file; energies
            stay in single precision, because half would round them to several meV.

    Raises:
        EvaluationError: if two structures have the same id.
    """
    ids, counts = np.unique(predictions.ids, return_counts=True)
    if len(ids) != len(predictions.ids):
        raise EvaluationError(
            f"{split}: {counted(int((counts > 1).sum()), 'id')} shared by several structures, "
            f"such as {str(ids[counts > 1][0])!r}: sid and fid do not distinguish its records."
        )
    if layout == FAIRCHEM:
        predictions = in_order_of_ids(predictions)
    return {
        f"{split}_ids": predictions.ids.astype(str),
        f"{split}_energy": predictions.energy.astype(np.float32),
        f"{split}_forces": predictions.forces.astype(np.float16 if float16 else np.float32),
        f"{split}_chunk_idx": np.cumsum(predictions.counts)[:-1].astype(np.int64),
    }


def problems_of_file(
    path: Path, expected: Mapping[str, Expected] | None = None, layout: str = FAIRCHEM
) -> list[str]:
    """All faults of a submission file, as sentences; [] if there are none.

    Args:
        path: the npz. expected: split -> what its data require, if available. layout: the expected
            layout.
    """
    try:
        arrays = _read(path)
    except DAMAGED as error:
        reason = "it is not one" if "pickle" in str(error) else str(error)
        return [f"{path} cannot be read as an npz file ({reason})."]
    return list(problems_of(arrays, expected or {}, layout))


def _read(path: Path) -> dict[str, np.ndarray | None]:
    """The arrays of an npz; None for those that need pickle."""
    stored = np.load(path, allow_pickle=False)
    if not isinstance(stored, np.lib.npyio.NpzFile):
        raise ValueError("it is a single array")
    arrays: dict[str, np.ndarray | None] = {}
    with stored:
        for name in stored.files:
            try:
                arrays[name] = stored[name]
            except ValueError:
                arrays[name] = None
    return arrays


def problems_of(
    arrays: Mapping[str, np.ndarray | None], expected: Mapping[str, Expected], layout: str
) -> Iterator[str]:
    """The same for arrays in memory; None stands for an array of objects."""
    wanted = [f"{split}_{field}" for split in SPLITS for field in FIELDS]
    for name in arrays:
        if name not in wanted:
            yield f"{name}: not a key of a submission. Keys: {', '.join(wanted)}."
    for split in SPLITS:
        missing = [f"{split}_{field}" for field in FIELDS if f"{split}_{field}" not in arrays]
        if missing:
            yield f"{split}: missing: {', '.join(missing)}."
            continue
        objects = [f for f in FIELDS if arrays[f"{split}_{f}"] is None]
        if objects:
            yield (
                f"{split}_{objects[0]} is an array of Python objects, which needs pickle to be "
                "read: make it an array of text or numbers."
            )
            continue
        ids, energy, forces, cuts = (arrays[f"{split}_{field}"] for field in FIELDS)
        broken = list(_shape_problems(split, ids, energy, forces, cuts))
        yield from broken
        if not broken:
            yield from _value_problems(split, ids, energy, forces, layout)
            yield from _data_problems(split, ids, forces, cuts, expected.get(split))


def _shape_problems(split: str, ids: Any, energy: Any, forces: Any, cuts: Any) -> Iterator[str]:
    """dtype, shape and length of each array, and where forces are split."""
    count = len(ids) if ids.ndim else 0
    if ids.dtype.kind not in "US" or ids.ndim != 1:
        yield f"{split}_ids: {_is(ids)}; it must be (structures,) text."
    if energy.dtype.kind == "f" and energy.shape == (count, 1):
        yield (
            f"{split}_energy is a column {energy.shape}, as fairchem 1.10's predict writes it; it "
            "must be one number per structure: energy[:, 0]."
        )
    elif energy.dtype.kind != "f" or energy.ndim != 1:
        yield f"{split}_energy: {_is(energy)}; it must be (structures,) floating point."
    elif len(energy) != count:
        yield f"{split}_energy has {counted(len(energy), 'value')} for {counted(count, 'id')}."
    if forces.dtype.kind != "f" or forces.ndim != 2 or forces.shape[1] != 3:
        yield f"{split}_forces: {_is(forces)}; it must be (atoms, 3) floating point."
    elif count and not len(forces):
        yield f"{split}_forces is empty, for {counted(count, 'structure')}."
    if cuts.dtype.kind not in "iu" or cuts.ndim != 1:
        yield f"{split}_chunk_idx: {_is(cuts)}; it must be (structures - 1,) integers."
        return
    given = f"{counted(len(cuts), 'entry', 'entries')} for {counted(count, 'structure')}"
    if len(cuts) == count and count:
        yield (
            f"{split}_chunk_idx has {given}: the last one, which is the number of all atoms, must "
            "be left out (np.cumsum(counts)[:-1])."
        )
        return
    if len(cuts) != count - 1:
        yield f"{split}_chunk_idx has {given}, not {count - 1}."
        return
    cuts = cuts.astype(np.int64)
    rows = len(forces) if forces.ndim else 0
    steps = np.diff(np.concatenate([[0], cuts, [rows]]))
    if (steps < 0).any():
        where = int(np.argmax(steps < 0))
        yield (
            f"{split}_chunk_idx is not cumulative: entry {min(where, len(cuts) - 1)} is "
            f"{int(cuts[min(where, len(cuts) - 1)])}"
            + (f", and there are {counted(rows, 'row')} of forces." if where == len(cuts)
               else f", after {int(cuts[where - 1])}." if where else ".")
        )  # fmt: skip


def _value_problems(
    split: str, ids: np.ndarray, energy: np.ndarray, forces: np.ndarray, layout: str
) -> Iterator[str]:
    """Values that are not finite, duplicate ids, an order other than fairchem's."""
    for name, values in (("energy", energy), ("forces", forces)):
        bad = ~np.isfinite(values.reshape(len(values), values[:1].size)).all(axis=1)
        if bad.any():
            yield f"{split}_{name}: {int(bad.sum())} not finite, the first in row {bad.argmax()}."
    if energy.dtype == np.float16:
        yield (
            f"{split}_energy is float16, in which energies of 4 to 8 eV are 4 meV apart: make it "
            "float32 (fairchem: task.prediction_dtype=float32)."
        )
    found, counts = np.unique(ids, return_counts=True)
    if len(found) != len(ids):
        yield (
            f"{split}_ids: {counted(int((counts > 1).sum()), 'id')} more than once, such as "
            f"{str(found[counts > 1][0])!r}."
        )
    elif layout == FAIRCHEM:
        if not np.array_equal(found, ids):
            row = int(np.argmax(found != ids))
            yield (
                f"{split}_ids are not in the order that fairchem writes (sorted as text): row "
                f"{row} is {str(ids[row])!r}, it should be {str(found[row])!r}."
            )
        plain = [str(name) for name in ids if str(name).count("_") != 1]
        if plain:
            yield f"{split}_ids: {len(plain)} are not SID_FID, such as {plain[0]!r}."


def _data_problems(
    split: str,
    ids: np.ndarray,
    forces: np.ndarray,
    cuts: np.ndarray,
    expected: Expected | None,
) -> Iterator[str]:
    """Differences from the split's data: structures, and their numbers of atoms."""
    if expected is None:
        return
    names = [str(name) for name in ids]
    given = set(names)
    missing = [name for name in expected.counts if name not in given]
    extra = [name for name in names if name not in expected.counts]
    if missing:
        number = counted(len(missing), "structure")
        yield f"{split}: {number} of the data missing: {_some(missing)}."
    if extra:
        yield f"{split}: {counted(len(extra), 'id')} not in the data: {_some(extra)}."
    rows = np.diff(np.concatenate([[0], cuts.astype(np.int64), [len(forces)]]))
    wrong = [
        (name, int(n), expected.counts[name])
        for name, n in zip(names, rows)
        if name in expected.counts and expected.counts[name] != n
    ]
    if wrong:
        name, has, wants = wrong[0]
        yield (
            f"{split}_chunk_idx gives {counted(len(wrong), 'structure')} another number of atoms "
            f"than the data, such as {name!r}: {has}, not {wants}. Are ids and forces in the same "
            "order, and are these the right atoms (free ones in the layout fairchem, all in "
            "leaderboard)?"
        )


def _is(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
