"""What can be wrong with one record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .fields import (
    QM9_UNITS,
    as_array,
    forces_of,
    free_atoms,
    has_forces,
    properties_of,
)

ERROR, WARNING = "error", "warning"
Problem = tuple[str, str, str]  # severity, kind, message

_REQUIRED = ("pos", "cell", "atomic_numbers", "natoms")
_WANTED = ("fixed", "tags", "sid", "fid")
_MAX_ATOMIC_NUMBER = 118


@dataclass(frozen=True)
class CheckOptions:
    """Thresholds of the check.

    Attributes:
        max_force: eV/A, largest force norm on a free atom. min_distance: A, between two atoms.
        force_unit: eV/A, the unit of the forces; the check of a split reads it from the data set.
    """

    max_force: float = 50.0
    min_distance: float = 0.5
    force_unit: float = 1.0


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
    return problems + _check_values(fields) + _check_geometry(fields, options)


def _check_shapes(fields: dict[str, Any]) -> list[Problem]:
    natoms = int(as_array(fields["natoms"]).reshape(-1)[0])
    expected = {
        "pos": (natoms, 3),
        "force": (natoms, 3),
        "forces": (natoms, 3),
        "cell": (1, 3, 3),
        "atomic_numbers": (natoms,),
        "fixed": (natoms,),
        "tags": (natoms,),
    }
    problems = []
    for key, shape in expected.items():
        if fields.get(key) is not None and as_array(fields[key]).shape != shape:
            actual = as_array(fields[key]).shape
            message = f"`{key}` has shape {actual}, expected {shape} (natoms {natoms})"
            problems.append((ERROR, "shape", message))
    for key in ("y", "energy", *QM9_UNITS):
        if fields.get(key) is not None and as_array(fields[key]).size != 1:
            problems.append((ERROR, "shape", f"`{key}` is not one number"))
    return problems


def _check_values(fields: dict[str, Any]) -> list[Problem]:
    problems = []
    for key in ("y", "energy", *QM9_UNITS, "force", "forces", "pos", "cell"):
        if fields.get(key) is not None:
            bad = ~np.isfinite(as_array(fields[key]).astype(np.float64))
            if bad.any():
                problems.append((ERROR, "not finite", f"{bad.sum()} NaN or inf in `{key}`"))
    numbers = as_array(fields["atomic_numbers"])
    if numbers.size and (numbers.min() < 1 or numbers.max() > _MAX_ATOMIC_NUMBER):
        problems.append((ERROR, "value", f"atomic numbers {numbers.min()} to {numbers.max()}"))
    for key, allowed in (("fixed", (0, 1)), ("tags", (0, 1, 2))):
        if fields.get(key) is not None and not np.isin(as_array(fields[key]), allowed).all():
            values = np.unique(as_array(fields[key])).tolist()
            problems.append((ERROR, "value", f"`{key}` has values {values[:5]}, not {allowed}"))
    return problems


def _check_geometry(fields: dict[str, Any], options: CheckOptions) -> list[Problem]:
    problems = _check_forces(fields, options) if has_forces(fields) else []
    positions = as_array(fields["pos"]).astype(np.float64)
    cell = as_array(fields["cell"]).astype(np.float64).reshape(3, 3)
    pbc = as_array(fields.get("pbc", np.ones(3))).reshape(3).astype(bool)
    if not (np.isfinite(positions).all() and np.isfinite(cell).all()):
        return problems
    if pbc.any() and abs(np.linalg.det(cell)) < 1e-3:
        return [*problems, (ERROR, "cell", "periodic with a cell of volume 0")]
    close = close_pair(positions, cell, pbc, options.min_distance)
    if close is not None:
        first, second, distance = close
        message = f"atoms {first} and {second} are {distance:.3f} A apart"
        problems.append((ERROR, "overlap", message))
    return problems


def _check_forces(fields: dict[str, Any], options: CheckOptions) -> list[Problem]:
    norms = np.where(free_atoms(fields), np.linalg.norm(forces_of(fields), axis=1), 0.0)
    largest = norms.max(initial=0.0) * options.force_unit
    if largest <= options.max_force:
        return []
    message = f"{largest:.4g} eV/A on free atom {norms.argmax()} (limit {options.max_force})"
    return [(ERROR, "large force", message)]


def close_pair(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, limit: float
) -> tuple[int, int, float] | None:
    """The closest two different atoms nearer than ``limit``, images included; None without one.

    Args:
        positions: (N, 3) A. cell: (3, 3) A. pbc: (3,) bool.
        limit: A; must be below half of the height of the cell in the periodic directions.

    Returns:
        ``(i, j, distance in A)`` or None.
    """
    from scipy.spatial import cKDTree

    if not pbc.any():
        pairs = cKDTree(positions).query_pairs(limit, output_type="ndarray")
        shifts = np.zeros((len(pairs), 3))
    else:
        inverse = np.linalg.inv(cell)
        fractional = positions @ inverse
        reach = limit * np.linalg.norm(inverse, 2)  # of a step of `limit` in fractional units
        folded = np.where(pbc, fractional % 1.0 % 1.0, fractional)
        # a box beyond all atoms stands for "not periodic"
        span = 2 * (np.ptp(folded, axis=0) + 1.0 + reach)
        folded = np.where(pbc, folded, folded - folded.min(axis=0))
        tree = cKDTree(folded, boxsize=np.where(pbc, 1.0, span))
        pairs = tree.query_pairs(min(reach, 0.5), output_type="ndarray")
        steps = fractional[pairs[:, 0]] - fractional[pairs[:, 1]]
        shifts = np.where(pbc, np.round(steps), 0.0) @ cell
    if len(pairs) == 0:
        return None
    vectors = positions[pairs[:, 0]] - positions[pairs[:, 1]] - shifts
    distances = np.linalg.norm(vectors, axis=1)
    closest = int(distances.argmin())
    if distances[closest] >= limit:
        return None
    return int(pairs[closest, 0]), int(pairs[closest, 1]), float(distances[closest])
