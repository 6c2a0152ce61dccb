"""No potential: energy and forces of zero, to which everything is a correction."""

from __future__ import annotations

import numpy as np
from ase.calculators.calculator import Calculator, all_changes


class NoPotential(Calculator):
    """Zero everywhere. With a correction fitted to the data (fairchem_kit/curvature/correction.py),
    it is a potential made of the data alone."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0, "forces": np.zeros((len(self.atoms), 3))}
