"""Energy references, which are subtracted from the total energies of the sources."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.npz import read_npz
from fairchem_kit.words import counted

from .errors import DataError
from .labels import LARGEST
from .scan import Composition, FrameTable

MODES = ("none", "last-frame", "linear")
#: length of the coefficients, which are indexed by atomic number (0 unused), as in fairchem
SIZE = 119
FILE_NAME = "linear_reference.npz"


@dataclass
class Reference:
    """The reference energies of a table of frames.

    Attributes:
        energy: (n,) eV, subtracted from the total energies.
        coefficients: (SIZE,) eV per atom, indexed by atomic number, or None.
        seen: (SIZE,) bool, the elements that the coefficients cover, or None.
        record: description for dataset.json.
    """

    energy: np.ndarray
    coefficients: np.ndarray | None
    seen: np.ndarray | None
    record: dict[str, Any]


def last_frame_reference(system: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """(n,) eV: for each frame the energy of the last frame of its system.

    Args:
        system: (n,) integer system of each frame, frames in their order.
        energy: (n,) eV.
    """
    last: dict[int, float] = dict(zip(system.tolist(), energy.tolist(), strict=True))
    return np.array([last[s] for s in system.tolist()], dtype=np.float64)


def composition_matrix(compositions: Sequence[Composition]) -> np.ndarray:
    """(k, SIZE) counts of each element."""
    matrix = np.zeros((len(compositions), SIZE))
    for row, composition in enumerate(compositions):
        for number, count in composition:
            matrix[row, number] = count
    return matrix


def fit_linear(
    compositions: Sequence[Composition], composition: np.ndarray, energy: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares energy per element, of minimum norm if the data do not determine it.

    Frames of one composition are replaced by their mean, weighted by the square root of their
    number, which gives the same solution as one row per frame.

    Args:
        compositions: the distinct compositions.
        composition: (n,) index of each frame into them.
        energy: (n,) eV.

    Returns:
        (SIZE,) coefficients, eV per atom, and (SIZE,) bool of the elements in the data.
    """
    matrix = composition_matrix(compositions)
    counts = np.bincount(composition, minlength=len(compositions)).astype(np.float64)
    sums = np.bincount(composition, weights=energy, minlength=len(compositions))
    used = counts > 0
    weights = np.sqrt(counts[used])
    means = sums[used] / counts[used]
    solution = np.linalg.lstsq(matrix[used] * weights[:, None], means * weights, rcond=None)[0]
    return solution, matrix[used].any(axis=0)


def load_linear(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients from an npz file with ``coeff`` indexed by atomic number (OC20, OC22, ours).

    Returns:
        (SIZE,) coefficients, eV per atom, and (SIZE,) bool of the elements that the file covers:
        its ``seen`` entry if it has one, else all coefficients that a record can hold.

    Raises:
        DataError: no such file, or the key is missing.
    """
    values = read_npz(path, DataError)
    key = "coeff" if "coeff" in values else "element_references"
    seen_there = values.get("seen", np.ones(np.shape(values.get(key)), dtype=bool))
    if not (
        key in values
        and values[key].ndim == 1
        and values[key].dtype.kind in "iuf"
        and seen_there.shape == values[key].shape
    ):
        found = ", ".join(f"{name} {a.dtype} {a.shape}" for name, a in sorted(values.items()))
        raise DataError(
            f"--energy-reference {path}: needs an array `coeff` of numbers (eV per atom) indexed "
            f"by atomic number, and may have `seen` of that length; it has {found or 'no arrays'}"
        )
    size = min(len(values[key]), SIZE)
    coefficients = np.zeros(SIZE)
    seen = np.zeros(SIZE, dtype=bool)
    seen[:size] = (np.abs(values[key][:size]) <= LARGEST) & seen_there[:size].astype(bool)
    coefficients[:size] = np.where(seen[:size], values[key][:size], 0.0)
    return coefficients, seen


def fingerprint(coefficients: np.ndarray, seen: np.ndarray) -> str:
    """SHA-256 of both arrays, to compare sets of coefficients."""
    covered = np.where(seen, coefficients, 0.0).astype("<f8")
    return hashlib.sha256(covered.tobytes() + seen.astype("u1").tobytes()).hexdigest()


def save_linear(path: Path, coefficients: np.ndarray, seen: np.ndarray) -> None:
    """Write ``coeff`` (SIZE,), eV per atom by atomic number, and ``seen`` (SIZE,) bool."""
    np.savez(path, coeff=coefficients, seen=seen)


def linear_energy(table: FrameTable, coefficients: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """(n,) eV: the sum of the coefficients over the atoms of each frame.

    Raises:
        DataError: an element without a coefficient; the message names a system and file.
    """
    from ase.data import chemical_symbols

    matrix = composition_matrix(table.compositions)
    missing = matrix[:, ~seen].any(axis=1)[table.composition]
    if missing.any():
        first = int(np.argmax(missing))
        numbers = np.flatnonzero(matrix[table.composition[first]] * ~seen)
        systems = sorted({table.systems[s] for s in table.system[missing]})
        raise DataError(
            f"{table.sources[table.source[first]].path}: the energy reference has no coefficient "
            f"for {', '.join(chemical_symbols[z] for z in numbers)}, which the training split does "
            f"not contain ({counted(len(systems), 'system')} concerned, the first: {systems[0]}). "
            "Move them to the training split (--seed, fractions), leave them out, or use "
            "--energy-reference last-frame or a FILE.npz that covers them"
        )
    return (matrix @ coefficients)[table.composition]


def apply_reference(mode: str, table: FrameTable, train: np.ndarray, last: np.ndarray) -> Reference:
    """The reference energies of all frames.

    Args:
        mode: one of MODES or the path of an npz file.
        table: the frames.
        train: (n,) bool, the frames of the training split, to which a reference is fitted. last:
            (n,) eV, the energy of the last frame of each frame's system (even if dropped).

    Raises:
        DataError: a bad file, an element not covered.
    """
    if mode == "none":
        return Reference(np.zeros(len(table)), None, None, {"kind": "none"})
    if mode == "last-frame":
        return Reference(last, None, None, {"kind": "last-frame"})
    if mode == "linear":
        coefficients, seen = fit_linear(
            table.compositions, table.composition[train], table.energy[train]
        )
        record: dict[str, Any] = {"kind": "linear", "fitted_on": "train", "file": FILE_NAME}
    else:
        coefficients, seen = load_linear(mode)
        record = {"kind": "linear", "fitted_on": None, "file": str(mode)}
    record["sha256"] = fingerprint(coefficients, seen)
    return Reference(linear_energy(table, coefficients, seen), coefficients, seen, record)
