"""One ASE frame as checked arrays: labels, fixed atoms, tags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .errors import FrameError

if TYPE_CHECKING:
    from ase import Atoms

#: elements that count as adsorbate at the end of the list of atoms: H, C, N, O
ADSORBATE_ELEMENTS = (1, 6, 7, 8)


@dataclass(frozen=True)
class LabelOptions:
    """Where the labels of a frame are found.

    Attributes:
        energy_key: key in ``atoms.info`` (or of a database row) of the energy in eV; None: ASE's.
        forces_key: key in ``atoms.arrays`` of the forces in eV/A; None: ASE's.
        system_key: key in ``atoms.info`` (or of a database row) that names the system.
        tags: ``auto`` derives tags where they are all 0, ``keep`` never does.
    """

    energy_key: str | None = None
    forces_key: str | None = None
    system_key: str | None = None
    tags: str = "auto"


@dataclass(frozen=True)
class Frame:
    """Arrays of one structure with N atoms.

    Attributes:
        numbers: (N,) int64, atomic numbers.
        positions: (N, 3) float64, A, as they are in the source (not wrapped).
        cell: (3, 3) float64, A, rows are lattice vectors; unit vectors stand in for missing ones.
        pbc: (3,) bool.
        energy: total energy, eV.
        forces: (N, 3) float64, eV/A, without the effect of constraints.
        fixed: (N,) int64, 1 for atoms held by FixAtoms.
        tags: (N,) int64, 0 below the surface, 1 surface, 2 adsorbate.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    energy: float
    forces: np.ndarray
    fixed: np.ndarray
    tags: np.ndarray

    def max_free_force(self) -> float:
        """Largest force norm over the free atoms, eV/A (0 when all atoms are fixed)."""
        norms = np.linalg.norm(self.forces[self.fixed == 0], axis=1)
        return float(norms.max(initial=0.0))


def read_frame(atoms: Atoms, options: LabelOptions) -> Frame:
    """Take the arrays of a frame and check them.

    Raises:
        FrameError: no energy or forces, NaN or infinite numbers, a lattice vector of length 0 in
            a periodic direction, wrong shapes. The message is the reason and the way out.
    """
    if len(atoms) == 0:
        raise FrameError("the frame has no atoms")
    energy, forces = _energy(atoms, options.energy_key), _forces(atoms, options.forces_key)
    positions = np.asarray(atoms.get_positions(), dtype=np.float64)
    pbc = np.asarray(atoms.pbc, dtype=bool)
    lengths = np.linalg.norm(np.asarray(atoms.cell[:], dtype=np.float64), axis=1)
    if np.any(pbc & (lengths < 1e-6)):
        raise FrameError(
            "periodic along a lattice vector of length 0; set pbc or the cell in the source"
        )
    cell = np.array(atoms.get_cell(complete=True), dtype=np.float64)
    for name, values in (("positions", positions), ("cell", cell)):
        if not np.all(np.isfinite(values)):
            raise FrameError(f"NaN or infinite {name}")
    if pbc.any() and abs(np.linalg.det(cell)) < 1e-6:
        raise FrameError("periodic with a cell of volume 0; correct the cell in the source")
    numbers = np.asarray(atoms.get_atomic_numbers(), dtype=np.int64)
    fixed = fixed_atoms(atoms)
    tags = np.asarray(atoms.get_tags(), dtype=np.int64)
    if options.tags == "auto" and not tags.any():
        tags = derive_tags(numbers, fixed, bool(pbc.any()))
    return Frame(numbers, positions, cell, pbc, energy, forces, fixed, tags)


def _energy(atoms: Atoms, key: str | None) -> float:
    results = atoms.calc.results if atoms.calc is not None else {}
    value = results.get("energy") if key is None else atoms.info.get(key, results.get(key))
    if value is None:
        raise FrameError(
            f"no energy{'' if key is None else f' under {key!r}'} (the frame has: "
            f"{sorted({*results, *atoms.info}) or 'no labels at all'}); name it with --energy-key"
        )
    if not np.isfinite(float(value)):
        raise FrameError(f"the energy is {float(value)}")
    return float(value)


def _forces(atoms: Atoms, key: str | None) -> np.ndarray:
    results = atoms.calc.results if atoms.calc is not None else {}
    value = results.get("forces") if key is None else atoms.arrays.get(key, results.get(key))
    if value is None:
        raise FrameError(
            f"no forces{'' if key is None else f' under {key!r}'} (the frame has: "
            f"{sorted({*results, *atoms.arrays})}); name them with --forces-key"
        )
    forces = np.asarray(value, dtype=np.float64)
    if forces.shape != (len(atoms), 3):
        raise FrameError(f"forces of shape {forces.shape} for {len(atoms)} atoms")
    bad = np.flatnonzero(~np.isfinite(forces).all(axis=1))
    if len(bad):
        raise FrameError(f"NaN or infinite forces on {len(bad)} atoms, the first is atom {bad[0]}")
    return forces


def fixed_atoms(atoms: Atoms) -> np.ndarray:
    """(N,) int64: 1 for atoms held by FixAtoms, 0 for the others."""
    from ase.constraints import FixAtoms

    fixed = np.zeros(len(atoms), dtype=np.int64)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            fixed[constraint.index] = 1
    return fixed


def other_constraints(atoms: Atoms) -> list[str]:
    """Names of the constraints that the record layout cannot hold (all but FixAtoms)."""
    names = {type(constraint).__name__ for constraint in atoms.constraints}
    return sorted(names - {"FixAtoms"})


def derive_tags(numbers: np.ndarray, fixed: np.ndarray, periodic: bool) -> np.ndarray:
    """OC20's tags where the source has none.

    0 = fixed atoms, 2 = the trailing run of free C, H, N and O atoms (the adsorbate, which OC20
    puts last), 1 = all other atoms. A molecule (not periodic) is all adsorbate, 2, but for fixed
    atoms. When the trailing run would be the whole structure of a periodic system, nothing tells
    slab and adsorbate apart and all free atoms are 1.

    Args:
        numbers: (N,) atomic numbers.
        fixed: (N,) 1 for fixed atoms.
        periodic: the structure is periodic in some direction.

    Returns:
        (N,) int64 tags.
    """
    free = fixed == 0
    tags = free.astype(np.int64)
    if not periodic:
        return 2 * tags
    candidate = np.isin(numbers, ADSORBATE_ELEMENTS) & free
    others = np.flatnonzero(~candidate)
    if len(others):
        tags[others[-1] + 1 :] = 2
    return tags
