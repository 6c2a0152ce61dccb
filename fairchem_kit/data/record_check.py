"""Checks of one record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .fields import (
    FLOATS,
    QM9_UNITS,
    as_array,
    forces_of,
    free_atoms,
    has_forces,
    properties_of,
)
from .frames import MAX_ATOMIC_NUMBER
from .positions import FAR
from .reader.geometry import close_pair, flattest, lonely_atom, nearest
from .tags import are_layers

__all__ = ["ERROR", "WARNING", "CheckOptions", "Problem", "check_record", "close_pair"]

ERROR, WARNING = "error", "warning"
Problem = tuple[str, str, str]  # severity, kind, message

_REQUIRED = ("pos", "cell", "atomic_numbers", "natoms")
_WANTED = ("fixed", "tags", "sid", "fid")
_FINITE = ("y", "energy", *QM9_UNITS, "force", "forces", "pos", "cell", "atomic_numbers")
_MAX_FLOAT = float(np.finfo(np.float32).max)  # labels become float32 in a batch
_SHAPED: dict[str, tuple[int | str, ...]] = {
    "pos": ("natoms", 3),
    "force": ("natoms", 3),
    "forces": ("natoms", 3),
    "cell": (1, 3, 3),
    "pbc": (1, 3),
    "atomic_numbers": ("natoms",),
    "fixed": ("natoms",),
    "tags": ("natoms",),
}


@dataclass(frozen=True)
class CheckOptions:
    """Thresholds of the check.

    Attributes:
        max_force: eV/A, largest force norm on a free atom. min_distance: A, between two atoms.
        force_unit: the unit of the forces in eV/A; the check of a split reads it from the data set.
            cutoff: A; an atom without a neighbour within it is isolated.
    """

    max_force: float = 50.0
    min_distance: float = 0.5
    force_unit: float = 1.0
    cutoff: float = 12.0


def check_record(fields: dict[str, Any], options: CheckOptions) -> list[Problem]:
    """All problems of one record (a dictionary of the fields of its PyG Data)."""
    problems = [(ERROR, "missing key", f"no `{k}`") for k in _REQUIRED if fields.get(k) is None]
    for names in (("y", "energy"), ("force", "forces")):
        if not properties_of(fields) and all(fields.get(name) is None for name in names):
            problems.append((ERROR, "missing key", f"neither `{names[0]}` nor `{names[1]}`"))
    problems += [(WARNING, "missing key", f"no `{k}`") for k in _WANTED if fields.get(k) is None]
    if any(severity == ERROR for severity, _, _ in problems):
        return problems
    shapes = _check_shapes(fields)
    if shapes:
        return problems + shapes
    return [
        *problems,
        *_check_types(fields),
        *_check_values(fields),
        *_check_geometry(fields, options),
    ]


def _check_shapes(fields: dict[str, Any]) -> list[Problem]:
    present = [key for key in ("natoms", *_SHAPED) if fields.get(key) is not None]
    arrays = {key: as_array(fields[key]) for key in present}
    problems = []
    for key in ("", *_SHAPED):  # "": natoms itself
        problem = shape_problem(arrays, (key,) if key else ())
        if problem is not None:
            problems.append((ERROR, *problem))
            if not key:
                return problems
    for key in ("y", "energy", *QM9_UNITS):
        if fields.get(key) is not None and as_array(fields[key]).size != 1:
            problems.append((ERROR, "shape", f"`{key}` is not one number"))
    return problems


def _check_types(fields: dict[str, Any]) -> list[Problem]:
    """Numbers that are not float32: our reader converts them, fairchem's does not."""
    types = {k: as_array(fields[k]).dtype for k in FLOATS if fields.get(k) is not None}
    other = {key: dtype for key, dtype in types.items() if dtype != np.float32}
    if not other:
        return []
    shown = ", ".join(f"`{key}` {dtype}" for key, dtype in other.items())
    message = (
        f"{shown}: `format: ndem_lmdb` converts them to float32, fairchem's `format: lmdb` fails"
    )
    return [(WARNING, "type", message)]


def shape_problem(
    arrays: dict[str, np.ndarray], keys: Sequence[str] | None = None
) -> tuple[str, str] | None:
    """The first field whose shape disagrees with ``natoms``: kind and message, or None.

    Args:
        arrays: fields as arrays; missing ones are ignored, but ``natoms`` must exist.
        keys: the fields to check, by default all of :data:`_SHAPED`.
    """
    number = arrays["natoms"]
    if number.size != 1 or number.dtype.kind not in "iu" or number.reshape(-1)[0] < 1:
        return "shape", "`natoms` is not a number of atoms"
    natoms = int(number.reshape(-1)[0])
    for key in _SHAPED if keys is None else keys:
        array = arrays.get(key)
        if array is None:
            continue
        shape = tuple(natoms if n == "natoms" else n for n in _SHAPED[key])
        if array.shape != shape and (key != "pbc" or array.size != 3):
            message = f"`{key}` has shape {array.shape}, expected {shape} (natoms {natoms})"
            return "shape", message
    return None


def _check_values(fields: dict[str, Any]) -> list[Problem]:
    problems = []
    for key in _FINITE:
        if fields.get(key) is not None:
            problem = _not_finite(key, as_array(fields[key]))
            problems += [] if problem is None else [(ERROR, *problem)]
    if not problems:
        problem = _wrong_elements(as_array(fields["atomic_numbers"]), MAX_ATOMIC_NUMBER)
        problems += [] if problem is None else [(ERROR, *problem)]
    for key, allowed in (("fixed", (0, 1)), ("tags", (0, 1, 2))):
        if fields.get(key) is not None and not np.isin(as_array(fields[key]), allowed).all():
            values = np.unique(as_array(fields[key])).tolist()
            problems.append((ERROR, "value", f"`{key}` has values {values[:5]}, not {allowed}"))
    return problems


def number_problem(arrays: dict[str, np.ndarray], largest: int) -> tuple[str, str] | None:
    """The first field with NaN, inf or an unknown element: kind and message, or None.

    Args:
        arrays: fields as arrays. largest: atomic number.
    """
    for key, array in arrays.items():
        problem = _not_finite(key, array)
        if problem is not None:
            return problem
    return _wrong_elements(arrays["atomic_numbers"], largest)


def _not_finite(key: str, array: np.ndarray) -> tuple[str, str] | None:
    if array.dtype == np.float16:  # its largest number is below the limit
        array = array.astype(np.float32)
    if array.dtype.kind not in "fc" or np.abs(array).max(initial=0.0) <= _MAX_FLOAT:
        return None
    bad = int((~(np.abs(array) <= _MAX_FLOAT)).sum())  # NaN compares as false
    return "not finite", f"{bad} NaN or inf in `{key}`"


def _wrong_elements(numbers: np.ndarray, largest: int) -> tuple[str, str] | None:
    if not numbers.size:
        return None
    broken = numbers[numbers != np.round(numbers)]
    if len(broken):
        return "value", f"an atomic number {broken[0]:g}, which is not a whole number"
    if numbers.min() >= 1 and numbers.max() <= largest:
        return None
    message = f"atomic numbers {int(numbers.min())} to {int(numbers.max())}"
    return "value", message + ("" if largest == MAX_ATOMIC_NUMBER else f" (largest: {largest})")


def _check_geometry(fields: dict[str, Any], options: CheckOptions) -> list[Problem]:
    problems = _check_forces(fields, options) if has_forces(fields) else []
    arrays = {k: as_array(fields[k]) for k in ("pos", "cell", "pbc") if fields.get(k) is not None}
    if not all(np.isfinite(arrays[key]).all() for key in ("pos", "cell")):
        return problems
    problem = geometry_problem(arrays, options.min_distance, options.cutoff)
    if problem is not None:
        problems.append((WARNING if problem[0] == "isolated" else ERROR, *problem))
    problems += _check_far(arrays["pos"])
    if problem is None or problem[0] != "cell":
        problems += _check_tags(fields, arrays)
    return problems


def _check_far(positions: np.ndarray) -> list[Problem]:
    """Coordinates so large that float32 does not resolve bond lengths."""
    largest = np.abs(positions).max(initial=0.0)
    if positions.dtype != np.float32 or largest <= 10 * FAR:
        return []
    message = (
        f"coordinates of up to {largest:.3g} A, where the resolution of float32 is "
        f"{np.spacing(largest):.1g} A; convert the source again (atoms are shifted by lattice "
        "vectors first)"
    )
    return [(WARNING, "far", message)]


def _check_tags(fields: dict[str, Any], arrays: dict[str, np.ndarray]) -> list[Problem]:
    """Tags 0 to 2 that do not have OC20's meaning."""
    if fields.get("tags") is None or "pbc" not in arrays:
        return []
    layers = are_layers(
        as_array(fields["tags"]),
        as_array(fields["atomic_numbers"]),
        (~free_atoms(fields)).astype(int),
        arrays["pos"].astype(np.float64),
        arrays["cell"].reshape(3, 3).astype(np.float64),
        arrays["pbc"].reshape(3).astype(bool),
    )
    message = (
        "its tags look like layers from the top as in ASE (0 = adsorbate), OC20's are 0 below the "
        "surface, 1 surface, 2 adsorbate; convert the source again with --tags auto"
    )
    return [(WARNING, "tags", message)] if layers else []


def geometry_problem(
    arrays: dict[str, np.ndarray], min_distance: float | None, cutoff: float | None
) -> tuple[str, str] | None:
    """A cell without volume, overlapping atoms, or an isolated atom: kind and message.

    Args:
        arrays: ``pos``, and ``cell`` and ``pbc`` if present, finite and of the right shape.
            min_distance: A. cutoff: A. None skips the check.
    """
    cell, pbc = arrays.get("cell"), arrays.get("pbc")
    if pbc is None:
        pbc = np.ones(3) if cell is not None else np.zeros(3)
    pbc = pbc.reshape(3).astype(bool)
    cell = np.zeros((3, 3)) if cell is None else cell.reshape(3, 3).astype(np.float64)
    if pbc.any():
        volume = abs(np.linalg.det(cell))
        if volume < 1e-3:
            return "cell", "periodic with a cell of volume 0"
        height = flattest(cell, pbc)
        if not height >= max(min_distance or 0.0, 1e-3):
            return "cell", f"periodic with a cell {height:.3g} A high"
    if min_distance is None:
        return None
    positions = arrays["pos"].astype(np.float64)
    distances, partners = nearest(positions, cell, pbc, min_distance)
    closest = int(distances.argmin()) if len(distances) else 0
    if len(distances) and distances[closest] < min_distance:
        first, second = sorted((closest, int(partners[closest])))
        return "overlap", f"atoms {first} and {second} are {distances[closest]:.3f} A apart"
    lonely = None if cutoff is None else lonely_atom(positions, cell, pbc, cutoff, distances)
    if lonely is not None:
        return "isolated", f"atom {lonely} has no neighbour within {cutoff:g} A"
    return None


def _check_forces(fields: dict[str, Any], options: CheckOptions) -> list[Problem]:
    norms = np.where(free_atoms(fields), np.linalg.norm(forces_of(fields), axis=1), 0.0)
    largest = norms.max(initial=0.0) * options.force_unit
    if largest <= options.max_force:
        return []
    message = f"{largest:.4g} eV/A on free atom {norms.argmax()} (limit {options.max_force})"
    return [(ERROR, "large force", message)]
