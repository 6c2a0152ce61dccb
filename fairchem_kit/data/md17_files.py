"""Reading MD17, revised MD17 and CCSD(T) trajectories from their npz files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.npz import DAMAGED
from fairchem_kit.words import counted

from .errors import DataError
from .frames import MAX_ATOMIC_NUMBER
from .molecules import Molecules

#: keys of the layouts; MD17's is also that of the CCSD(T) sets and of sGDML's files
LAYOUTS = {
    "MD17": {"numbers": "z", "positions": "R", "y": "E", "forces": "F"},
    "rMD17": {
        "numbers": "nuclear_charges",
        "positions": "coords",
        "y": "energies",
        "forces": "forces",
    },
}
#: keys of the original MD17 labels in an rMD17 file
ORIGINAL = {"y": "old_energies", "forces": "old_forces"}
LABELS = ("file", "original")
_ANGSTROM = ("ang", "angstrom", "a", "å")
_ENERGY_UNITS = {"kcal/mol": "kcal/mol", "kcalmol": "kcal/mol", "ev": "eV"}


@dataclass(frozen=True)
class Trajectory:
    """M frames of one molecule with N atoms, as in the file.

    Attributes:
        path: the file. layout: a key of LAYOUTS. keys: names of the arrays.
        numbers: (N,) positions: (M, N, 3) A. energies: (M,) and forces: (M, N, 3) in ``unit`` and
            ``unit``/A. unit: ``kcal/mol`` or ``eV``.
        old_indices: (M,) frame numbers in the original MD17 trajectory, or None.
        notes: name, theory and md5 if the file has them.
    """

    path: str
    layout: str
    keys: dict[str, str]
    numbers: np.ndarray
    positions: np.ndarray
    energies: np.ndarray
    forces: np.ndarray
    unit: str
    old_indices: np.ndarray | None
    notes: dict[str, str]

    def __len__(self) -> int:
        return len(self.positions)


def read_trajectory(path: str | Path, labels: str = "file") -> Trajectory:
    """Read one npz file.

    Args:
        path: the file. labels: ``file``, or ``original`` for the old labels in rMD17 files.

    Raises:
        DataError: not an npz file, unknown keys or units, wrong shapes.
    """
    if Path(path).is_dir():
        raise DataError(f"{path}: a folder; give one of MD17's npz files")
    try:
        content = np.load(path, allow_pickle=False)
    except DAMAGED as error:
        # for any foreign bytes numpy's message suggests unpickling them
        reason = "it is none" if "pickle" in str(error) else error
        raise DataError(f"{path}: cannot be read as npz ({reason}); download it again") from None
    if not isinstance(content, np.lib.npyio.NpzFile):
        raise DataError(f"{path}: one array, not an npz file; give MD17's npz file")
    with content:
        found = set(content.files)
        layout = next((n for n, k in LAYOUTS.items() if set(k.values()) <= found), None)
        if layout is None:
            raise DataError(
                f"{path}: unknown layout; it has {sorted(found)}. Known are "
                + " and ".join(f"{n} ({', '.join(k.values())})" for n, k in LAYOUTS.items())
            )
        keys = dict(LAYOUTS[layout])
        if labels == "original":
            keys.update(ORIGINAL)
            missing = sorted(set(ORIGINAL.values()) - found)
            if missing:
                raise DataError(
                    f"{path}: --labels original needs {' and '.join(missing)}, which only rMD17 "
                    f"files have; it has {sorted(found)}. Leave out the option for files with one "
                    "set of labels"
                )
        arrays = {what: _array(content, path, key) for what, key in keys.items()}
        old = _array(content, path, "old_indices") if "old_indices" in found else None
        notes = {n: _text(content, n) for n in ("name", "theory", "md5", "e_unit", "r_unit")}
    notes = {name: text for name, text in notes.items() if text is not None}
    return _checked(str(path), layout, keys, arrays, old, notes)


def _array(content: Any, path: str | Path, key: str) -> np.ndarray:
    try:
        array = content[key]
    except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
        raise DataError(f"{path}: `{key}` cannot be read ({error}); download it again") from None
    whole = key in ("old_indices", *(keys["numbers"] for keys in LAYOUTS.values()))
    if array.dtype.kind not in ("iu" if whole else "iuf"):
        expected = "whole numbers" if whole else "numbers"
        raise DataError(f"{path}: `{key}` holds {array.dtype}, expected {expected}")
    return array


def _text(content: Any, key: str) -> str | None:
    """A note in the file; None if it has none that can be read without pickle."""
    try:
        value = content[key].item()
    except Exception:  # missing, damaged, or an object array
        return None
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _checked(
    path: str,
    layout: str,
    keys: dict[str, str],
    arrays: dict[str, np.ndarray],
    old: np.ndarray | None,
    notes: dict[str, str],
) -> Trajectory:
    """The trajectory, after checking shapes and units."""
    _check_numbers(path, keys["numbers"], arrays["numbers"])
    numbers, positions = arrays["numbers"].reshape(-1), arrays["positions"]
    energies = arrays["y"]
    if energies.ndim == 2 and energies.shape[1] == 1:
        energies = energies[:, 0]
    frames, atoms = (*positions.shape, 0, 0)[:2]
    expected = {
        "positions": (positions, (frames, len(numbers), 3)),
        "y": (energies, (frames,)),
        "forces": (arrays["forces"], (frames, len(numbers), 3)),
    }
    for what, (array, shape) in expected.items():
        if array.shape != shape:
            raise DataError(
                f"{path}: `{keys[what]}` has shape {arrays[what].shape}, expected {shape} for "
                f"{counted(frames, 'frame')} (`{keys['positions']}`) of "
                f"{counted(len(numbers), 'atom')} (`{keys['numbers']}`); download the file again"
            )
    if frames == 0 or atoms == 0:
        raise DataError(f"{path}: `{keys['positions']}` holds no frames")
    if old is not None and old.shape != (frames,):
        raise DataError(f"{path}: `old_indices` has shape {old.shape}, expected {(frames,)}")
    if notes.get("r_unit", "Ang").strip().lower() not in _ANGSTROM:
        raise DataError(f"{path}: `r_unit` is {notes['r_unit']!r}; convert the lengths to Ang")
    given = notes.get("e_unit", "kcal/mol")
    unit = _ENERGY_UNITS.get(given.strip().lower())
    if unit is None:
        raise DataError(f"{path}: `e_unit` is {given!r}; convert the labels to kcal/mol or eV")
    return Trajectory(
        path, layout, keys, numbers, positions, energies, arrays["forces"], unit, old, notes
    )


def _check_numbers(path: str, key: str, numbers: np.ndarray) -> None:
    """They belong to all frames, so a wrong one cannot be avoided by leaving frames out."""
    if numbers.ndim > 1 and min(numbers.shape) > 1:
        raise DataError(
            f"{path}: `{key}` has shape {numbers.shape}, expected one list of atomic numbers for "
            "all frames; write one file per molecule, or convert the frames to extxyz and use "
            "`ndem data ase`"
        )
    numbers = numbers.reshape(-1)
    wrong = np.flatnonzero((numbers < 1) | (numbers > MAX_ATOMIC_NUMBER))
    if len(wrong):
        value = int(numbers[wrong[0]])
        advice = (
            "if it only fills up the list, remove that atom from the positions and forces too"
            if value == 0
            else "correct it in the file"
        )
        raise DataError(
            f"{path}: `{key}`: atom {wrong[0]} has the atomic number {value}, but elements have 1 "
            f"to {MAX_ATOMIC_NUMBER}; {advice}"
        )


def join(trajectories: Sequence[Trajectory], factor: float) -> Molecules:
    """Concatenate trajectories of one molecule, with sid 0.

    Args:
        trajectories: at least one. factor: multiplies energies and forces.

    Returns:
        The molecules; ``fid`` and ``row`` are the number of the frame in its file.

    Raises:
        DataError: they have different molecules or units.
    """
    first = trajectories[0]
    for other in trajectories[1:]:
        if not np.array_equal(first.numbers, other.numbers):
            raise DataError(
                f"{other.path}: its atoms (`{other.keys['numbers']}`) are not those of "
                f"{first.path}; convert each molecule into its own directory"
            )
        if first.unit != other.unit or first.layout != other.layout:
            raise DataError(
                f"{other.path}: {other.layout} in {other.unit}, but {first.path}: {first.layout} "
                f"in {first.unit}; convert sets of different origin separately"
            )
    counts = [len(t) for t in trajectories]
    rows = np.concatenate([np.arange(count) for count in counts])
    size = len(first.numbers)
    energies = np.concatenate([t.energies for t in trajectories]).astype(np.float64)
    forces = _joined([t.forces for t in trajectories])
    return Molecules(
        numbers=np.tile(first.numbers, len(rows)),
        positions=_joined([t.positions for t in trajectories]),
        offsets=size * np.arange(len(rows) + 1, dtype=np.int64),
        sid=np.zeros(len(rows), dtype=np.int64),
        fid=rows,
        labels={"y": energies * factor},
        forces=forces if factor == 1 else forces * factor,
        file=np.repeat(np.arange(len(counts)), counts),
        row=rows,
        files=tuple(t.path for t in trajectories),
        keys=first.keys,
    )


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    """(frames * atoms, 3); without a copy if there is only one array."""
    whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return whole.reshape(-1, 3)
