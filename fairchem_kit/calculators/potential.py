"""An ASE calculator applied to structures of a data set."""

from __future__ import annotations

import time
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

    def seconds(self, structure: Structure, calls: int = 3) -> float:
        """Median time of a calculation on the structure.

        The first one may compile or load something and is not counted. Each of the others is
        shifted: an ASE calculator repeats its last results for the same positions.
        """
        times = []
        for call in range(calls + 1):
            eps = np.full(structure.positions.shape, 0.01 * call, dtype=structure.positions.dtype)
            began = time.perf_counter()
            self(structure, eps)
            times.append(time.perf_counter() - began)
        return float(np.median(times[1:]))

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
