"""Vibrational frequencies at the minimum of an ASE calculator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fairchem_kit.evaluation.errors import EvaluationError

STEP = 0.01  # A, of the central differences
FMAX, STEPS = 0.01, 500  # relaxation: eV/A, maximum number of steps
STILL = 0.03  # A or A u^0.5; a rotation by 1 rad that moves less, as about a bond, moves nothing


@dataclass(frozen=True)
class Vibrations:
    """Frequencies at a minimum.

    Attributes:
        atoms: the relaxed structure (ase.Atoms).
        frequencies: cm^-1, see :func:`frequencies_of`.
        fmax: eV/A, largest remaining force on a free atom.
        steps: of the relaxation.
        converged: whether ``fmax`` is below what was asked for.
        moved: A, rms distance of the relaxed structure from the given one.
    """

    atoms: Any
    frequencies: np.ndarray
    fmax: float
    steps: int
    converged: bool
    moved: float

    @property
    def imaginary(self) -> int:
        """Number of imaginary frequencies; a minimum has none."""
        return int((self.frequencies < 0).sum())


def vibrations(atoms: Any, calculator: Any, fmax: float = FMAX) -> Vibrations:
    """Relax a structure with a calculator and compute the frequencies at the minimum.

    Args:
        atoms: ase.Atoms, not changed; atoms under FixAtoms do not move. calculator: of ASE, with
            energies and forces. fmax: eV/A, convergence of the relaxation.

    Raises:
        EvaluationError: no free atom, or constraints other than FixAtoms.
    """
    from ase.optimize import BFGS

    free_atoms(atoms)
    given, atoms = atoms, atoms.copy()
    atoms.calc = calculator
    optimizer = BFGS(atoms, logfile=None)
    optimizer.run(fmax=fmax, steps=STEPS)
    left = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
    return Vibrations(
        atoms,
        frequencies_of(atoms, force_constants(atoms)),
        left,
        optimizer.get_number_of_steps(),
        left <= fmax,
        distance(atoms, given),
    )


def force_constants(atoms: Any) -> np.ndarray:
    """eV/A^2, (3 n, 3 n) for n free atoms: -dF_i/dx_j by central differences, without relaxing.

    ``atoms`` has a calculator, which computes forces 6 n times.

    Raises:
        EvaluationError: forces are not finite.
    """
    free = free_atoms(atoms)
    columns = []
    for atom in free:
        for axis in range(3):
            forces = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.calc = atoms.calc
                moved.positions[atom, axis] += sign * STEP
                forces.append(moved.get_forces(apply_constraint=False)[free])
            columns.append(-(forces[0] - forces[1]).ravel() / (2 * STEP))
    found = np.array(columns)
    if not np.isfinite(found).all():
        raise EvaluationError("the calculator's forces are not finite near the relaxed structure.")
    return (found + found.T) / 2


def frequencies_of(atoms: Any, hessian: np.ndarray) -> np.ndarray:
    """Vibrational frequencies in cm^-1, increasing; imaginary ones are negative.

    Motions of all atoms together are projected out before the Hessian is diagonalised, so a soft
    or imaginary mode is not taken for one of them. n free atoms have 3 n frequencies, minus six
    (linear: five) in a molecule and three in a periodic structure, if no atom is fixed.

    Args:
        atoms: ase.Atoms at the minimum. hessian: eV/A^2, (3 n, 3 n) for the n free atoms.
    """
    from ase import units

    weight = np.repeat(atoms.get_masses()[free_atoms(atoms)], 3) ** -0.5
    inside = internal_motions(atoms)
    squared = np.linalg.eigvalsh(inside @ (hessian * np.outer(weight, weight)) @ inside.T)
    energies = np.sign(squared) * np.sqrt(np.abs(squared))
    energies *= units._hbar * 1e10 / np.sqrt(units._e * units._amu)
    return energies / units.invcm


def free_atoms(atoms: Any) -> np.ndarray:
    """Indices of the atoms that are not under FixAtoms.

    Raises:
        EvaluationError: there are none, or there are constraints of other kinds.
    """
    from ase.constraints import FixAtoms

    other = [type(each).__name__ for each in atoms.constraints if not isinstance(each, FixAtoms)]
    if other:
        raise EvaluationError(
            f"the structure has a constraint {other[0]}, and only FixAtoms is known here: remove "
            "it, or fix atoms instead."
        )
    fixed = [index for each in atoms.constraints for index in each.get_indices()]
    free = np.setdiff1d(np.arange(len(atoms)), fixed)
    if not free.size:
        raise EvaluationError("all atoms are fixed, so there are no vibrations.")
    return free


def internal_motions(atoms: Any) -> np.ndarray:
    """(vibrations, 3 n) orthonormal mass-weighted displacements of the n free atoms.

    They are orthogonal to the translations, and without periodicity also to the rotations, that
    leave every fixed atom where it is.
    """
    free = free_atoms(atoms)
    rigid = [np.tile(axis, (len(atoms), 1)) for axis in np.eye(3)]
    if not atoms.pbc.any():
        from_center = atoms.positions - atoms.get_center_of_mass()
        rigid += [np.cross(axis, from_center) for axis in np.eye(3)]
    motions = np.array(rigid)
    fixed = np.delete(motions, free, axis=1).reshape(len(motions), -1)
    if fixed.size:
        left, sizes, _ = np.linalg.svd(fixed)
        motions = np.tensordot(left[:, (sizes > STILL).sum() :].T, motions, axes=1)
    weighted = motions[:, free] * np.sqrt(atoms.get_masses()[free])[:, None]
    if not len(motions):
        return np.eye(3 * len(free))
    _, sizes, directions = np.linalg.svd(weighted.reshape(len(motions), -1))
    return directions[(sizes > STILL).sum() :]


def distance(first: Any, second: Any) -> float:
    """rms distance in A over atoms, between nearest images or after the best rotation of a free
    molecule."""
    from ase.build import minimize_rotation_and_translation
    from ase.geometry import find_mic

    second = second.copy()
    if not first.pbc.any() and not first.constraints:
        minimize_rotation_and_translation(first, second)
    moved = second.positions - first.positions
    if first.pbc.any():
        moved, _ = find_mic(moved, first.cell, first.pbc)
    return float(np.sqrt(np.square(moved).sum(1).mean()))
