"""An ASE calculator applied to structures of a data set."""

from __future__ import annotations

from typing import Any

import numpy as np

from fairchem_kit.data.errors import DataError
from fairchem_kit.data.records import Structure


class Potential:
    """An ASE calculator for structures of a data set, one after another.

    Raises:
        DataError: (all methods) the calculator fails or its results are not finite; the message has
            the record and the calculator's own error.
    """

    def __init__(self, calculator: Any) -> None:
        self.calculator = calculator

    def __call__(
        self, structure: Structure, eps: np.ndarray | None = None
    ) -> tuple[float, np.ndarray]:
        """Energy in eV and (N, 3) forces in eV/A on the structure, or displaced by eps.

        X + eps is first rounded to float32, like the input of a model.
        """
        from ase import Atoms

        positions = structure.positions if eps is None else structure.positions + eps
        atoms = Atoms(
            structure.numbers,
            positions.astype(np.float64),
            cell=structure.cell,
            pbc=structure.pbc,
        )
        atoms.calc = self.calculator
        try:
            energy = float(atoms.get_potential_energy())
            forces = np.asarray(atoms.get_forces(), dtype=np.float64)
        except Exception as error:  # whatever it raises, for example for an unknown element
            raise DataError(
                f"{structure.where} ({atoms.get_chemical_formula()}): the calculator fails "
                f"({type(error).__name__}: {error})"
            ) from error
        if not np.isfinite(energy) or not np.isfinite(forces).all():
            raise DataError(
                f"{structure.where} ({atoms.get_chemical_formula()}): the calculator's energy or "
                "forces are not finite"
            )
        return energy, forces
