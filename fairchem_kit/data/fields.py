"""Reading the fields of a record under any of their names and types."""

from __future__ import annotations

from typing import Any

import numpy as np

#: targets of QM9 in the order of the literature, and their units in a record
QM9_UNITS = {
    "mu": "D",
    "alpha": "a0^3",
    "homo": "eV",
    "lumo": "eV",
    "gap": "eV",
    "r2": "a0^2",
    "zpve": "eV",
    "U0": "eV",
    "U": "eV",
    "H": "eV",
    "G": "eV",
    "Cv": "cal/(mol K)",
}
#: fields that must be float32 in a batch, like the model's weights: torch does not mix types
FLOATS = ("pos", "cell", "force", "forces", "pos_relaxed")


def properties_of(fields: dict[str, Any]) -> list[str]:
    """The QM9 targets that a record has. A record with any of them needs no energy and forces."""
    return [name for name in QM9_UNITS if fields.get(name) is not None]


def has_forces(fields: dict[str, Any]) -> bool:
    """Whether a record has forces."""
    return fields.get("force") is not None or fields.get("forces") is not None


def has_energy(fields: dict[str, Any]) -> bool:
    """Whether a record has an energy."""
    return fields.get("y") is not None or fields.get("energy") is not None


def as_array(value: Any) -> np.ndarray:
    """A tensor, array or number as a NumPy array."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def sid_of(fields: dict[str, Any]) -> Any:
    """The system's number or name as a plain value; None if the record has none."""
    sid = fields.get("sid")
    if sid is None or isinstance(sid, str):
        return sid
    values = as_array(sid).reshape(-1)
    return values[0].item() if values.size else None


def forces_of(fields: dict[str, Any]) -> np.ndarray:
    """(N, 3) float64, eV/A."""
    value = fields["force"] if "force" in fields else fields["forces"]
    return as_array(value).astype(np.float64)


def free_atoms(fields: dict[str, Any]) -> np.ndarray:
    """(N,) bool, true for atoms that are not fixed; all atoms if the record has no ``fixed``."""
    if fields.get("fixed") is None:
        return np.ones(len(as_array(fields["pos"])), dtype=bool)
    return as_array(fields["fixed"]) == 0


def small_displacement(first: dict[str, Any], second: dict[str, Any]) -> np.ndarray:
    """(N, 3) A: how the atoms moved between two frames, by the nearest lattice translation.

    Rounding fractional displacements is exact for displacements that are small compared with the
    cell; only such are used here.
    """
    moved = as_array(second["pos"]).astype(np.float64) - as_array(first["pos"])
    cell = as_array(first["cell"]).astype(np.float64).reshape(3, 3)
    pbc = as_array(first.get("pbc", np.ones(3))).reshape(3).astype(bool)
    if not pbc.any() or abs(np.linalg.det(cell)) < 1e-6:
        return moved
    return moved - np.where(pbc, np.round(moved @ np.linalg.inv(cell)), 0.0) @ cell
