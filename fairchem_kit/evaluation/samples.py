"""The per-structure files of an evaluation: the prediction for every structure and atom.

    DIR/SPLIT.samples.csv    one row per structure, for pandas.read_csv
    DIR/SPLIT.atoms.npz      one entry per atom, for errors by element, force or kind of atom

Columns of the CSV, in this order. X stands for the name of each scalar output of the model (energy;
a target of QM9). Values are in the data's own units (OC20: eV, eV/A; MD17: kcal/mol), not
normalised; ``metrics.json`` next to the files has the units. An empty cell is an undefined value.

    index              number of the record in its split, from 0
    sid, fid           of the record: system, and frame in it (empty if the data have none)
    natoms, free_atoms number of atoms; of atoms that are not fixed
    formula            Hill formula of all atoms
    adsorbate          Hill formula of the atoms with tag 2 (empty without a surface)
    X_label, X_prediction, X_error       error = prediction - label
    force_mae          mean |component of the force error| over the atoms that count
    force_cosine       mean over these atoms of the cosine of predicted and true force
    force_max_error    largest |component of the force error|
    force_rms          root mean square of the components of the true force
    efwt               1 if the energy error is below 0.02 eV and force_max_error below 0.03 eV/A

The atoms that count are the free ones where the configuration has ``eval_on_free_atoms``.

Arrays of the npz, one entry per atom, in the order of the CSV's rows:

    structure          (A,) int64, the row of the atom's structure
    atomic_numbers     (A,) uint8
    tags               (A,) int8: 0 below the surface, 1 surface, 2 adsorbate; -1 if unknown
    free               (A,) bool
    force_label, force_prediction        (A, 3) float32
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.evaluation.errors import EvaluationError
from fairchem_kit.files import replacing
from fairchem_kit.npz import read_npz

SAMPLES, ATOMS = ".samples.csv", ".atoms.npz"
ATOM_FIELDS = (
    *("structure", "atomic_numbers", "tags", "free"),
    *("force_label", "force_prediction"),
)
#: columns of text or whole numbers; all others are numbers and may be missing (NaN)
TEXT = ("sid", "fid", "formula", "adsorbate")
WHOLE = ("index", "natoms", "free_atoms")


@dataclass(frozen=True)
class Samples:
    """One split, structure by structure.

    Attributes:
        columns: name -> (structures,) array; the columns of the CSV.
        atoms: name -> (atoms, ...) array; the arrays of the npz, {} without forces.
    """

    columns: dict[str, np.ndarray]
    atoms: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.columns["index"])

    @property
    def force_error(self) -> np.ndarray:
        """(A,) mean |component of the error| of each atom's force."""
        difference = self.atoms["force_prediction"] - self.atoms["force_label"]
        return np.abs(difference).mean(axis=1)

    @property
    def force_magnitude(self) -> np.ndarray:
        """(A,) norm of each atom's true force."""
        return np.linalg.norm(self.atoms["force_label"], axis=1)


def join(parts: Sequence[Samples]) -> Samples:
    """Concatenate parts of one split, in order; ``structure`` then counts rows of the whole."""
    columns = {
        name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns
    }
    if not parts[0].atoms:
        return Samples(columns, {})
    starts = np.cumsum([0, *(len(part) for part in parts[:-1])])
    shifted = [
        {**part.atoms, "structure": part.atoms["structure"] + start}
        for part, start in zip(parts, starts)
    ]
    return Samples(
        columns, {name: np.concatenate([a[name] for a in shifted]) for name in shifted[0]}
    )


_AGAIN = "run ndem eval again."


def write_samples(folder: Path, split: str, samples: Samples, atoms: bool = True) -> list[Path]:
    """Write the files of one split; returns their paths.

    Raises:
        OutputError: when the disk refuses.
    """
    path = folder / f"{split}{SAMPLES}"
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(samples.columns)
        writer.writerows(zip(*(cells(values) for values in samples.columns.values())))
    if not (atoms and samples.atoms):
        return [path]
    with replacing(folder / f"{split}{ATOMS}") as temporary:
        np.savez_compressed(temporary, **samples.atoms)
    return [path, folder / f"{split}{ATOMS}"]


def read_samples(folder: str | Path, split: str) -> Samples:
    """Read the files of one split; without the npz, ``atoms`` is empty.

    Raises:
        EvaluationError: naming a file that is missing or was not written by this package.
    """
    folder = Path(folder)
    path = folder / f"{split}{SAMPLES}"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            names, *rows = csv.reader(file)
    except (OSError, ValueError) as error:
        known = ", ".join(splits_in(folder)) or "none"
        raise EvaluationError(
            f"{path}: cannot be read ({error}). Splits in {folder}: {known}."
        ) from error
    if "index" not in names:
        raise EvaluationError(f"{path}: not a file of ndem eval: it has no column 'index'.")
    cells = zip(*rows) if rows else ((),) * len(names)
    try:
        if any(len(row) != len(names) for row in rows):
            raise ValueError("its last row is incomplete")
        columns = {name: _array(name, values) for name, values in zip(names, cells)}
    except ValueError as error:
        raise EvaluationError(f"{path}: damaged ({error}); {_AGAIN}") from error
    atoms: dict[str, np.ndarray] = {}
    if (folder / f"{split}{ATOMS}").exists():
        stored = read_npz(folder / f"{split}{ATOMS}", EvaluationError)
        lacking = [name for name in ATOM_FIELDS if name not in stored]
        if lacking:
            raise EvaluationError(
                f"{folder}/{split}{ATOMS}: there is no array {lacking[0]!r} in it."
            )
        atoms = {name: stored[name] for name in ATOM_FIELDS}
        if "natoms" in columns and columns["natoms"].sum() != len(atoms["free"]):
            raise EvaluationError(
                f"{path} and {split}{ATOMS} have different numbers of atoms: one is cut off, or of "
                f"another evaluation; {_AGAIN}"
            )
    return Samples(columns, atoms)


def splits_in(folder: str | Path) -> list[str]:
    """Names of the splits that have files in ``folder``."""
    return sorted(path.name.removesuffix(SAMPLES) for path in Path(folder).glob(f"*{SAMPLES}"))


def hill(numbers: Iterable[int]) -> str:
    """Hill formula of atomic numbers: C and H first, then by the alphabet."""
    found, counts = np.unique(np.asarray(numbers, dtype=np.int64), return_counts=True)
    return _hill(tuple(zip(found.tolist(), counts.tolist())))


@functools.lru_cache(maxsize=65536)
def _hill(composition: tuple[tuple[int, int], ...]) -> str:
    from ase.data import chemical_symbols

    counts = {chemical_symbols[number]: count for number, count in composition}
    first = [symbol for symbol in ("C", "H") if symbol in counts] if "C" in counts else []
    order = [*first, *sorted(symbol for symbol in counts if symbol not in first)]
    return "".join(f"{s}{counts[s] if counts[s] > 1 else ''}" for s in order)


def cells(values: np.ndarray) -> list[Any]:
    """A column as CSV cells: NaN becomes empty, numbers have the digits of float32."""
    if values.dtype.kind != "f":
        return values.tolist()
    return ["" if np.isnan(value) else f"{value:.9g}" for value in values]


def _array(name: str, values: Sequence[str]) -> np.ndarray:
    if name in TEXT:
        return np.array(values, dtype=object)
    if name in WHOLE:
        return np.array(values, dtype=np.int64)
    return np.array([float(value) if value else np.nan for value in values])
