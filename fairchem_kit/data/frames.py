"""One ASE frame as checked arrays: labels, fixed atoms, tags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .errors import FrameError
from .labels import LARGEST, energy_of, forces_of
from .tags import are_layers, derive_tags, tags_from_layers
from .units import IN_EV

if TYPE_CHECKING:
    from ase import Atoms

MAX_ATOMIC_NUMBER = 118
#: A; further from the origin, even float64 does not resolve a bond length to 1e-4 A
_TOO_FAR = 1e11


@dataclass(frozen=True)
class LabelOptions:
    """Where to find the labels of a frame.

    Attributes:
        energy_key: key in ``atoms.info`` (or of a database row) of the energy in eV; None: ASE's.
        forces_key: key in ``atoms.arrays`` of the forces in eV/A; None: ASE's.
        system_key: key in ``atoms.info`` (or of a database row) with the name of the system.
        tags: ``auto`` derives tags if they are all 0 or follow another convention than OC20's,
            ``keep`` never does.
        unit: of the energies (and per A of the forces); a key of ``units.IN_EV``. Records are in
            eV.
    """

    energy_key: str | None = None
    forces_key: str | None = None
    system_key: str | None = None
    tags: str = "auto"
    unit: str = "eV"


@dataclass(frozen=True)
class Frame:
    """Arrays of one structure with N atoms.

    Attributes:
        numbers: (N,) int64, atomic numbers.
        positions: (N, 3) float64, A, as in the source (not wrapped).
        cell: (3, 3) float64, A, rows are lattice vectors; missing ones are replaced by unit
            vectors.
        pbc: (3,) bool.
        energy: total energy, eV.
        forces: (N, 3) float64, eV/A, without the effect of constraints.
        fixed: (N,) int64, 1 for atoms held by FixAtoms.
        tags: (N,) int64, 0 below the surface, 1 surface, 2 adsorbate.
        foreign_tags: description of the source's tags if they were not OC20's, else "".
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    energy: float
    forces: np.ndarray
    fixed: np.ndarray
    tags: np.ndarray
    foreign_tags: str = ""

    def max_free_force(self) -> float:
        """Largest force norm over the free atoms, eV/A (0 if all atoms are fixed)."""
        norms = np.linalg.norm(self.forces[self.fixed == 0], axis=1)
        return float(norms.max(initial=0.0))


def read_frame(atoms: Atoms, options: LabelOptions) -> Frame:
    """Extract the arrays of a frame and check them.

    Raises:
        FrameError: no energy or forces, labels that are not numbers, NaN or infinite numbers,
            unknown elements, a lattice vector of length 0 in a periodic direction, wrong shapes,
            tags that are not OC20's with ``tags: keep``. The message is the reason and what to do.
    """
    try:
        return _read(atoms, options)
    except FrameError:
        raise
    except Exception as error:  # a file can contain anything
        raise FrameError(f"cannot be used ({type(error).__name__}: {error})") from None


def _read(atoms: Atoms, options: LabelOptions) -> Frame:
    if len(atoms) == 0:
        raise FrameError("the frame has no atoms")
    factor = IN_EV[options.unit]
    numbers = _elements(atoms)
    positions, cell, pbc = _geometry(atoms)  # with NaN in them ASE does not give its labels
    energy = energy_of(atoms, options.energy_key) * factor
    forces = forces_of(atoms, options.forces_key) * factor
    fixed = fixed_atoms(atoms)
    given = np.asarray(atoms.get_tags(), dtype=np.int64)
    tags, foreign = _tags(given, numbers, fixed, positions, cell, pbc, options.tags)
    return Frame(numbers, positions, cell, pbc, energy, forces, fixed, tags, foreign)


def _elements(atoms: Atoms) -> np.ndarray:
    """(N,) int64 atomic numbers."""
    numbers = np.asarray(atoms.get_atomic_numbers(), dtype=np.int64)
    bad = np.flatnonzero((numbers < 1) | (numbers > MAX_ATOMIC_NUMBER))
    if len(bad):
        raise FrameError(
            f"atom {bad[0]} has atomic number {numbers[bad[0]]}"
            f"{' (X, a ghost atom)' if numbers[bad[0]] == 0 else ''}, elements go from 1 to "
            f"{MAX_ATOMIC_NUMBER} ({len(bad)} such atoms); correct or remove it in the source"
        )
    return numbers


def _geometry(atoms: Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions (N, 3) A, cell (3, 3) A with unit vectors for missing vectors, and pbc (3,)."""
    positions = np.asarray(atoms.get_positions(), dtype=np.float64)
    pbc = np.asarray(atoms.pbc, dtype=bool)
    cell = np.asarray(atoms.cell[:], dtype=np.float64)
    for name, values, limit in (("positions", positions, _TOO_FAR), ("cell", cell, LARGEST)):
        if not np.all(np.isfinite(values)):
            raise FrameError(f"NaN or infinite {name}")
        if np.abs(values).max(initial=0.0) > limit:
            raise FrameError(
                f"{name} of up to {np.abs(values).max():.3g} A: damaged, or not in Angstrom"
            )
    if np.any(pbc & (np.linalg.norm(cell, axis=1) < 1e-6)):
        raise FrameError(
            "periodic along a lattice vector of length 0; set pbc or the cell in the source"
        )
    cell = np.array(atoms.get_cell(complete=True), dtype=np.float64)
    if pbc.any() and abs(np.linalg.det(cell)) < 1e-6:
        raise FrameError("periodic with a cell of volume 0; correct the cell in the source")
    return positions, cell, pbc


def _tags(
    given: np.ndarray,
    numbers: np.ndarray,
    fixed: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    mode: str,
) -> tuple[np.ndarray, str]:
    """OC20's tags, and a description of the given ones if they were not OC20's."""
    derived = derive_tags(numbers, fixed, bool(pbc.any()))
    if not given.any():
        return (derived if mode == "auto" else given), ""
    layers = are_layers(given, numbers, fixed, positions, cell, pbc)
    outside = given.min() < 0 or given.max() > 2
    if not layers and not outside:
        return given, ""
    what = f"{given.min()} to {given.max()}" + (", layers from the top as in ASE" if layers else "")
    if mode == "auto":
        return (tags_from_layers(given, fixed) if layers else derived), what
    if outside:
        raise FrameError(
            f"its tags are {what}, OC20's are 0 (below the surface), 1 (surface) and 2 "
            "(adsorbate); leave out --tags keep to have them derived"
        )
    return given, what


def fixed_atoms(atoms: Atoms) -> np.ndarray:
    """(N,) int64: 1 for atoms held by FixAtoms, 0 for the others.

    Raises:
        FrameError: FixAtoms holds an atom that the frame does not have.
    """
    from ase.constraints import FixAtoms

    fixed = np.zeros(len(atoms), dtype=np.int64)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            try:
                fixed[constraint.index] = 1
            except IndexError as error:
                raise FrameError(
                    f"FixAtoms holds an atom that the frame does not have ({error})"
                ) from None
    return fixed


def other_constraints(atoms: Atoms) -> list[str]:
    """Names of the constraints that a record cannot store (all but FixAtoms)."""
    names = {type(constraint).__name__ for constraint in atoms.constraints}
    return sorted(names - {"FixAtoms"})
