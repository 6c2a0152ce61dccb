"""Running sums over records: normalizer values, zero-force error, curvature."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .fields import (
    as_array,
    forces_of,
    free_atoms,
    has_energy,
    has_forces,
    properties_of,
    sid_of,
    small_displacement,
)

#: A; only pairs of frames in which no free atom moves further are used for the curvature
MAX_DISPLACEMENT = 0.1
#: no curvature is given with fewer pairs
MIN_PAIRS = 10


@dataclass(frozen=True)
class Statistics:
    """Statistics of one split.

    Attributes:
        frames, systems: numbers (systems: of distinct sid). atoms, atoms_min, atoms_max: total and
            per frame. elements: atomic numbers. free_atoms: atoms that are not fixed.
        energy_mean, energy_stdev: eV (or the data set's own unit), over frames; None without
            energies.
        force_rms: eV/A, root mean square of the force components on free atoms: the stdev for
            fairchem's force normalizer, with mean 0; None without forces.
        zero_force_mae: eV/A, mean absolute component on free atoms: the error of predicting 0.
        curvature: eV/A^2, isotropic c of F(X2) - F(X1) = -c (X2 - X1), by least squares over
            consecutive frames of a system; None if there are too few pairs.
        curvature_pairs: number of pairs of frames used.
        targets: QM9's targets: name -> (mean, standard deviation) over molecules.
    """

    frames: int
    systems: int
    atoms: int
    atoms_min: int
    atoms_max: int
    free_atoms: int
    elements: list[int]
    energy_mean: float | None
    energy_stdev: float | None
    force_rms: float | None
    zero_force_mae: float | None
    curvature: float | None
    curvature_pairs: int
    targets: dict[str, tuple[float, float]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass
class Moments:
    """Count, mean and sum of squared deviations of numbers (Chan's formula merges two)."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0

    def merge(self, other: Moments) -> None:
        """Add the numbers that ``other`` has seen."""
        if other.count == 0:
            return
        total = self.count + other.count
        delta = other.mean - self.mean
        self.mean += delta * other.count / total
        self.m2 += other.m2 + delta**2 * self.count * other.count / total
        self.count = total

    @property
    def stdev(self) -> float:
        """Standard deviation, divided by the number of values."""
        return math.sqrt(self.m2 / self.count)


@dataclass
class Accumulator:
    """Running sums over records (dictionaries of fields as ``shards.load_record`` gives them)."""

    frames: int = 0
    moments: dict[str, Moments] = field(default_factory=dict)  # of the energy ("") and targets
    force_square: float = 0.0
    force_abs: float = 0.0
    components: int = 0
    free_atoms: int = 0
    atoms: int = 0
    atoms_min: int = np.iinfo(np.int64).max
    atoms_max: int = 0
    elements: set[int] = field(default_factory=set)
    sids: set[Any] = field(default_factory=set)
    has_forces: bool = False
    pairs: int = 0
    force_change: float = 0.0  # sum of dF . dX
    displacement: float = 0.0  # sum of dX . dX

    def add(self, fields: dict[str, Any], previous: dict[str, Any] | None = None) -> None:
        """Add a record; ``previous`` is the one before it in the shard, for the curvature."""
        self.frames += 1
        if has_energy(fields):
            self._add_moments("", fields["y"] if "y" in fields else fields["energy"])
        for name in properties_of(fields):
            self._add_moments(name, fields[name])
        numbers = as_array(fields["atomic_numbers"])
        free = free_atoms(fields)
        if has_forces(fields):
            forces = forces_of(fields)[free]
            self.force_square += float(np.sum(forces**2))
            self.force_abs += float(np.sum(np.abs(forces)))
            self.components += forces.size
            self.has_forces = True
        self.free_atoms += int(free.sum())
        self.atoms += len(numbers)
        self.atoms_min = min(self.atoms_min, len(numbers))
        self.atoms_max = max(self.atoms_max, len(numbers))
        self.elements.update(int(z) for z in np.unique(numbers))
        self.sids.add(sid_of(fields))
        if previous is not None and has_forces(fields) and has_forces(previous):
            self._add_pair(previous, fields, free)

    def _add_moments(self, name: str, value: Any) -> None:
        self.moments.setdefault(name, Moments()).merge(Moments(1, float(value)))

    def _add_pair(self, first: dict[str, Any], second: dict[str, Any], free: np.ndarray) -> None:
        if sid_of(first) is None or sid_of(first) != sid_of(second) or not free.any():
            return
        numbers = as_array(first["atomic_numbers"])
        if not np.array_equal(numbers, as_array(second["atomic_numbers"])):
            return
        moved = small_displacement(first, second)[free]
        if np.linalg.norm(moved, axis=1).max() >= MAX_DISPLACEMENT or not moved.any():
            return
        change = forces_of(second)[free] - forces_of(first)[free]
        self.pairs += 1
        self.force_change += float(np.sum(change * moved))
        self.displacement += float(np.sum(moved**2))

    def merge(self, other: Accumulator) -> None:
        """Add the sums of another chunk."""
        for name, moments in other.moments.items():
            self.moments.setdefault(name, Moments()).merge(moments)
        for name in ("frames", "force_square", "force_abs", "components", "free_atoms", "atoms",
                     "pairs", "force_change", "displacement"):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.atoms_min = min(self.atoms_min, other.atoms_min)
        self.atoms_max = max(self.atoms_max, other.atoms_max)
        self.elements |= other.elements
        self.has_forces |= other.has_forces
        self.sids |= other.sids

    def result(self) -> Statistics | None:
        """The statistics; None without records."""
        if self.frames == 0:
            return None
        count = max(self.components, 1)
        energy = self.moments.get("")
        enough = self.pairs >= MIN_PAIRS and self.displacement > 0
        return Statistics(
            frames=self.frames,
            systems=len(self.sids - {None}),
            atoms=self.atoms,
            atoms_min=self.atoms_min,
            atoms_max=self.atoms_max,
            free_atoms=self.free_atoms,
            elements=sorted(self.elements),
            energy_mean=energy.mean if energy else None,
            energy_stdev=energy.stdev if energy else None,
            force_rms=math.sqrt(self.force_square / count) if self.has_forces else None,
            zero_force_mae=self.force_abs / count if self.has_forces else None,
            curvature=-self.force_change / self.displacement if enough else None,
            curvature_pairs=self.pairs,
            targets={
                name: (moments.mean, moments.stdev)
                for name, moments in self.moments.items()
                if name
            },
        )
