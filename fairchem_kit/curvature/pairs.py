"""Pairs of near frames of one system, from which the change of forces is known.

In periodic structures each frame is paired with the first later frame within a range of
displacements; in molecules, whose frames may be in any order, with the nearest frame after the best
rotation. Each frame is used once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fairchem_kit.data.records import Structure

#: A, range of the largest displacement of a free atom between the frames of a pair
DISPLACEMENTS = (0.02, 0.3)
_LOOK_AHEAD = 40  # frames
_MOST_FRAMES = 2000  # of one molecule: the nearest frames are searched among all their pairs
MOST_READ = 20_000  # records that the commands search for pairs


@dataclass(frozen=True)
class Pair:
    """Two frames of one system, the second rotated (molecules) and shifted onto the first.

    Attributes:
        first, second: indices of the structures in the sequence that was searched.
        rotation: (3, 3) R with second @ R in the frame of the first; identity in a cell.
        moved: (N, 3) A, X2 - X1. free: (N,) bool.
    """

    first: int
    second: int
    rotation: np.ndarray
    moved: np.ndarray
    free: np.ndarray

    def change(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """(n, 3) vectors of the second frame minus those of the first, on the n free atoms."""
        return (second @ self.rotation - first)[self.free]

    @property
    def rms(self) -> float:
        """A, root mean square length of the displacements of free atoms."""
        return float(np.sqrt(np.square(self.moved[self.free]).sum(-1).mean()))


def near_pairs(
    structures: Sequence[Structure],
    count: int = 100,
    displacements: tuple[float, float] = DISPLACEMENTS,
    seed: int = 0,
) -> list[Pair]:
    """At most ``count`` pairs, spread evenly over the systems.

    Args:
        structures: those without forces are left out.
        count: number of pairs. displacements: A, range of the largest displacement of a free atom.
            seed: for choosing among more pairs.
    """
    groups: dict[object, list[int]] = defaultdict(list)
    for index, structure in enumerate(structures):
        if structure.forces is not None and structure.free.any():
            key = (structure.sid, structure.numbers.tobytes(), structure.free.tobytes())
            groups[key].append(index)
    random = np.random.default_rng(seed)
    found = []
    for members in groups.values():
        periodic = structures[members[0]].pbc.any() and np.any(structures[members[0]].cell)
        search = _along if periodic else _nearest
        pairs = search(structures, members, displacements, random)
        found.append(pairs if periodic else pairs[: max(count, 1)])
    chosen: list[Pair] = []
    shuffled = [[pairs[i] for i in random.permutation(len(pairs))] for pairs in found if pairs]
    while shuffled and len(chosen) < count:
        for pairs in shuffled:
            chosen.append(pairs.pop())
        shuffled = [pairs for pairs in shuffled if pairs]
    return chosen[:count]


def _along(
    structures: Sequence[Structure],
    members: list[int],
    displacements: tuple[float, float],
    random: np.random.Generator,
) -> list[Pair]:
    """Frames of a trajectory, each with the first later one that is far enough away."""
    low, high = displacements
    pairs, used = [], set()
    for place, first in enumerate(members):
        if first in used:
            continue
        for second in members[place + 1 : place + 1 + _LOOK_AHEAD]:
            if second in used:
                continue
            moved = _in_cell(structures[first], structures[second])
            free = structures[first].free
            largest = np.linalg.norm(moved[free], axis=1).max()
            if largest >= low:
                if largest <= high:
                    used |= {first, second}
                    pairs.append(Pair(first, second, np.eye(3), moved, free))
                break
    return pairs


def _in_cell(first: Structure, second: Structure) -> np.ndarray:
    """(N, 3) A: displacements by the nearest lattice translation, for small ones."""
    moved = second.positions.astype(np.float64) - first.positions
    fraction = moved @ np.linalg.inv(first.cell)
    return moved - np.where(first.pbc, np.round(fraction), 0.0) @ first.cell


def _nearest(
    structures: Sequence[Structure],
    members: list[int],
    displacements: tuple[float, float],
    random: np.random.Generator,
) -> list[Pair]:
    """Molecules: each frame with the most similar geometry, the nearest pairs first."""
    if len(members) < 2:
        return []
    if len(members) > _MOST_FRAMES:
        members = sorted(random.choice(members, _MOST_FRAMES, replace=False).tolist())
    positions = np.array([structures[i].positions for i in members], dtype=np.float64)
    positions -= positions.mean(1, keepdims=True)
    upper = np.triu_indices(positions.shape[1], 1)
    shapes = np.linalg.norm(positions[:, upper[0]] - positions[:, upper[1]], axis=-1)
    square = np.square(shapes).sum(1)
    apart = square[:, None] + square[None] - 2 * shapes @ shapes.T
    np.fill_diagonal(apart, np.inf)
    nearest = apart.argmin(1)
    order = np.argsort(apart[np.arange(len(members)), nearest])
    low, high = displacements
    pairs, used = [], set()
    for i in order:
        j = int(nearest[i])
        if i in used or j in used:
            continue
        rotation = _rotation(positions[i], positions[j])
        moved = positions[j] @ rotation - positions[i]
        if low <= np.linalg.norm(moved, axis=1).max() <= high:
            used |= {int(i), j}
            free = structures[members[i]].free
            pairs.append(Pair(members[i], members[j], rotation, moved, free))
    return pairs


def _rotation(target: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(3, 3) proper rotation R that brings ``positions @ R`` closest to ``target`` (Kabsch)."""
    left, _, right = np.linalg.svd(positions.T @ target)
    sign = np.sign(np.linalg.det(left @ right))
    return left @ np.diag([1.0, 1.0, sign]) @ right
