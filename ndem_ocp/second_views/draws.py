"""Displacements of a structure, and a calculator's energies and forces for them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fairchem_kit.calculators.potential import Potential
from fairchem_kit.data.errors import DataError
from fairchem_kit.data.records import Structure

from .sidecar import Views, structure_digest


@dataclass(frozen=True)
class Draws:
    """How structures are displaced: eps_i ~ N(0, sigma^2 I) on every free atom.

    Attributes:
        count: K, displacements per structure.
        sigma_min, sigma_max: A, range of sigma. Its K values are spread evenly over the range.
        seed: determines the displacements together with the structure's digest, in any order.
    """

    count: int = 16
    sigma_min: float = 0.02
    sigma_max: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise DataError(f"--draws {self.count}: give at least 1 displacement per structure")
        if not 0 < self.sigma_min <= self.sigma_max < 1:
            raise DataError(
                f"--sigma {self.sigma_min} {self.sigma_max}: give two lengths in A, 0 < MIN <= MAX "
                "< 1"
            )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def expected_within(self, low: float, high: float) -> float:
        """How many of the K displacements have a sigma from ``low`` to ``high`` on average."""
        inside = min(high, self.sigma_max) - max(low, self.sigma_min)
        width = self.sigma_max - self.sigma_min
        if inside < 0 or width == 0:
            return self.count * float(inside >= 0)
        return self.count * inside / width

    def of(self, structure: Structure) -> tuple[np.ndarray, np.ndarray]:
        """(K,) sigma and (K, N, 3) eps of a structure, float32, A; 0 on fixed atoms."""
        words = np.frombuffer(digest_of(structure), "<u4")
        random = np.random.default_rng([self.seed, *words.tolist()])
        place = (np.arange(self.count) + random.random(self.count)) / self.count
        sigma = self.sigma_min + (self.sigma_max - self.sigma_min) * random.permutation(place)
        unit = random.standard_normal((self.count, len(structure.numbers), 3))
        eps = unit * sigma[:, None, None] * structure.free[None, :, None]
        return sigma.astype(np.float32), eps.astype(np.float32)


def digest_of(structure: Structure) -> bytes:
    """The key of a record's structure: :func:`structure_digest`."""
    return structure_digest(structure.numbers, structure.positions, structure.cell, ~structure.free)


def views_of(potential: Potential, structure: Structure, draws: Draws) -> Views:
    """All second views of a structure: K + 1 calculations."""
    sigma, eps = draws.of(structure)
    energy, forces = potential(structure)
    moved = [potential(structure, each) for each in eps]
    return Views(
        forces=forces,
        sigma=sigma,
        eps=eps,
        force_change=np.array([f - forces for _, f in moved]),
        energy_change=np.array([e - energy for e, _ in moved]),
    )


def gradient_mismatch(
    potential: Potential, structures: list[Structure], sigma: float = 0.02
) -> float:
    """Relative difference between the forces and the energy's gradient; 0 if they agree.

    rms of E(X+eps) - E(X) + (T(X) + T(X+eps)) . eps / 2, which is of third order in eps for a
    gradient, divided by the rms of the last term.
    """
    wrong = size = 0.0
    for structure in structures:
        _, eps = Draws(2, sigma, sigma).of(structure)
        energy, forces = potential(structure)
        for each in eps:
            displaced, changed = potential(structure, each)
            work = float((each * (forces + changed)).sum()) / 2
            wrong += (displaced - energy + work) ** 2
            size += work**2
    return float(np.sqrt(wrong / size)) if size > 0 else 0.0
