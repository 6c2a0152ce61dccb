"""Energies of pairs and triples of atoms that are linear in their coefficients, with their forces.

    V(X) = sum over terms t of sum_k c_{kind(t) k} phi_k(t)

where a term is a pair or a triple of atoms within a cutoff, its kind is the elements in it, and the
phi_k are products of radial functions and powers of a cosine.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fairchem_kit.data.records import Structure


@dataclass(frozen=True)
class Leg:
    """A coordinate q of each term and how it moves with an atom: dq/dx_atom.

    Attributes:
        atom: (T,) index. moves: (T, 3) dq/dx_atom. slope: (T, K) dphi_k/dq.
    """

    atom: np.ndarray
    moves: np.ndarray
    slope: np.ndarray


@dataclass(frozen=True)
class Terms:
    """T terms of a structure of N atoms.

    Attributes:
        atoms: N. kind: (T,) row of the coefficients. value: (T, K) phi_k. legs: for the forces.
    """

    atoms: int
    kind: np.ndarray
    value: np.ndarray
    legs: list[Leg]

    def forces_of_each(self, size: int) -> np.ndarray:
        """(N, 3, size) forces per coefficient."""
        each = self.value.shape[1]
        out = np.zeros((size // each, self.atoms, 3, each))
        for leg in self.legs:
            force = -leg.moves[:, :, None] * leg.slope[:, None, :]
            np.add.at(out, (self.kind, leg.atom), force)
        return out.transpose(1, 2, 0, 3).reshape(self.atoms, 3, size)

    def energy_and_forces(self, coefficients: np.ndarray) -> tuple[float, np.ndarray]:
        """V and its (N, 3) forces."""
        own = coefficients.reshape(-1, self.value.shape[1])[self.kind]
        forces = np.zeros((self.atoms, 3))
        for leg in self.legs:
            np.add.at(forces, leg.atom, -leg.moves * (leg.slope * own).sum(1, keepdims=True))
        return float((self.value * own).sum()), forces


@dataclass(frozen=True)
class Radial:
    """Gaussians at equal distances, times a cosine that is zero at the cutoff; all in A."""

    first: float
    cutoff: float
    width: float

    @property
    def centres(self) -> np.ndarray:
        """(K,)."""
        return np.arange(self.first, self.cutoff - self.width / 2, self.width)

    def __call__(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(E, K) values and derivatives at (E,) distances."""
        scaled = (r[:, None] - self.centres) / self.width
        bump = np.exp(-0.5 * scaled**2)
        turn = np.pi / self.cutoff
        fade, fading = 0.5 * (1 + np.cos(turn * r)), -0.5 * turn * np.sin(turn * r)
        return bump * fade[:, None], bump * (fading[:, None] - scaled / self.width * fade[:, None])

    def neighbours(
        self, structure: Structure, eps: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of each pair within the cutoff, both ways: i, j, r and the unit vector i to j."""
        from ase import Atoms
        from ase.neighborlist import neighbor_list

        positions = structure.positions if eps is None else structure.positions + eps
        atoms = Atoms(
            structure.numbers, positions.astype(np.float64), cell=structure.cell, pbc=structure.pbc
        )
        i, j, r, to = neighbor_list("ijdD", atoms, self.cutoff)
        return i, j, r, to / r[:, None]


@dataclass(frozen=True)
class Pairs:
    """phi_k(r_ij).

    Attributes:
        elements: atomic numbers.
    """

    elements: tuple[int, ...]
    radial: Radial = Radial(first=0.8, cutoff=5.0, width=0.25)

    @cached_property
    def _kinds(self) -> dict[tuple[int, int], int]:
        kinds = itertools.combinations_with_replacement(sorted(self.elements), 2)
        return {kind: place for place, kind in enumerate(kinds)}

    @property
    def size(self) -> int:
        """Number of coefficients."""
        return len(self._kinds) * len(self.radial.centres)

    def terms(self, structure: Structure, eps: np.ndarray | None = None) -> Terms:
        """The pairs of a structure, or of the structure displaced by eps (N, 3)."""
        numbers = structure.numbers
        i, j, r, unit = self.radial.neighbours(structure, eps)
        low, high = np.sort([numbers[i], numbers[j]], axis=0)
        kind = np.array([self._kinds[pair] for pair in zip(low, high)], dtype=int)
        value, slope = self.radial(r)
        value, slope = value / 2, slope / 2  # each pair is there twice
        return Terms(len(numbers), kind, value, [Leg(i, -unit, slope), Leg(j, unit, slope)])


@dataclass(frozen=True)
class Triples:
    """phi_nml = R_n(r_ia) R_m(r_ib) cos(angle a-i-b)^l, symmetric in a and b.

    Attributes:
        elements: atomic numbers. width: A, of the Gaussians in r. powers: l = 0 ... powers.
    """

    elements: tuple[int, ...]
    width: float = 0.75
    powers: int = 3

    @property
    def radial(self) -> Radial:
        """From 1 to 3.5 A."""
        return Radial(first=1.0, cutoff=3.5, width=self.width)

    @cached_property
    def _kinds(self) -> dict[tuple[int, int, int], int]:
        ends = list(itertools.combinations_with_replacement(sorted(self.elements), 2))
        kinds = ((centre, *pair) for centre in sorted(self.elements) for pair in ends)
        return {kind: place for place, kind in enumerate(kinds)}

    @property
    def size(self) -> int:
        """Number of coefficients."""
        return len(self._kinds) * len(self.radial.centres) ** 2 * (self.powers + 1)

    def terms(self, structure: Structure, eps: np.ndarray | None = None) -> Terms:
        """The triples of a structure, or of the structure displaced by eps (N, 3)."""
        numbers = structure.numbers
        i, j, r, unit = self.radial.neighbours(structure, eps)
        a, b = _two_of_each_centre(i, numbers[j])
        centre, kind = (
            i[a],
            np.array(
                [self._kinds[key] for key in zip(numbers[i[a]], numbers[j[a]], numbers[j[b]])],
                dtype=int,
            ),
        )
        cosine = (unit[a] * unit[b]).sum(1)
        value, slope = self.radial(r)
        power = np.arange(self.powers + 1)
        angular = cosine[:, None] ** power
        turning = power * cosine[:, None] ** np.maximum(power - 1, 0)
        alike = numbers[j[a]] == numbers[j[b]]

        def product(first: np.ndarray, second: np.ndarray, third: np.ndarray) -> np.ndarray:
            out = first[:, :, None, None] * second[:, None, :, None] * third[:, None, None, :]
            out[alike] += out[alike].transpose(0, 2, 1, 3)
            return out.reshape(len(out), -1)

        along_a = product(slope[a], value[b], angular)
        along_b = product(value[a], slope[b], angular)
        around = product(value[a], value[b], turning)
        turn_a = (unit[b] - cosine[:, None] * unit[a]) / r[a][:, None]
        turn_b = (unit[a] - cosine[:, None] * unit[b]) / r[b][:, None]
        legs = [
            Leg(j[a], unit[a], along_a), Leg(centre, -unit[a], along_a),
            Leg(j[b], unit[b], along_b), Leg(centre, -unit[b], along_b),
            Leg(j[a], turn_a, around), Leg(j[b], turn_b, around),
            Leg(centre, -turn_a - turn_b, around),
        ]  # fmt: skip
        return Terms(len(numbers), kind, product(value[a], value[b], angular), legs)


def _two_of_each_centre(i: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges a and b of all triples: two edges of one centre, the end of a not the heavier one."""
    first, second = [np.zeros(0, dtype=int)], [np.zeros(0, dtype=int)]
    for centre in np.unique(i):
        edges = np.flatnonzero(i == centre)
        edges = edges[np.argsort(end[edges], kind="stable")]
        a, b = np.triu_indices(len(edges), 1)
        first.append(edges[a])
        second.append(edges[b])
    return np.concatenate(first), np.concatenate(second)
