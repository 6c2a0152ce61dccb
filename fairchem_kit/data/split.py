"""Assigning frames to splits and numbers to systems."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairchem_kit.words import counted

from .errors import DataError

TRAIN, VAL, TEST = "train", "val", "test"


def split_units(
    units: np.ndarray, val_fraction: float, test_fraction: float, seed: int, what: str = "system"
) -> np.ndarray:
    """Assign frames to train, val and test so that frames of one unit stay together.

    Args:
        units: (n,) integer unit (system, or the frame itself) of each frame.
        val_fraction, test_fraction: fractions of the units; at least one unit each where > 0.
        seed: of the shuffle of the units.
        what: name of a unit in error messages.

    Returns:
        (n,) array of split names.

    Raises:
        DataError: fractions out of range, or no unit left for training.
    """
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise DataError("--val-fraction and --test-fraction must be >= 0 and sum to less than 1")
    names = np.unique(units)
    counts = [
        max(1, round(fraction * len(names))) if fraction > 0 else 0
        for fraction in (val_fraction, test_fraction)
    ]
    if sum(counts) >= len(names):
        raise DataError(
            f"{counted(len(names), what)}: too few for these fractions: none is left for training; "
            "use smaller fractions, more data or --split-by frame"
        )
    order = np.random.default_rng(seed).permutation(names)
    val, test = order[: counts[0]], order[counts[0] : sum(counts)]
    result = np.full(len(units), TRAIN, dtype=object)
    result[np.isin(units, val)] = VAL
    result[np.isin(units, test)] = TEST
    return result


def assign_sids(names: Sequence[str], existing: Mapping[str, Any] | None = None) -> dict[str, int]:
    """A unique integer per system.

    OC20's own names (``random1000102``) keep their number, as in OC20's LMDBs; others are
    numbered from 0. Systems that are already in the data set keep their number.

    Args:
        names: names of the systems of this conversion.
        existing: ``{name: {"sid": int}}`` of the data set to which frames are added.
    """
    known = {name: int(entry["sid"]) for name, entry in (existing or {}).items()}
    used, sids = set(known.values()), {}
    for name in names:
        match = re.search(r"random(\d+)$", name)
        if name in known:
            sids[name] = known[name]
        elif match and int(match.group(1)) not in used:
            sids[name] = int(match.group(1))
            used.add(sids[name])
    following = 0
    for name in names:
        if name in sids:
            continue
        while following in used:
            following += 1
        sids[name] = following
        used.add(following)
    return sids
