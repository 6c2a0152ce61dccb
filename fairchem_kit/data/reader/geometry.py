"""Distances between atoms with their periodic images, without loops over pairs."""

from __future__ import annotations

from itertools import product

import numpy as np

_MAX_IMAGES = 20_000


def close_pair(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, limit: float
) -> tuple[int, int, float] | None:
    """The closest two atoms nearer than ``limit``, images included; None if there are none.

    Args:
        positions: (N, 3) A. cell: (3, 3) A. pbc: (3,) bool.
        limit: A; must not exceed the height of the cell in the periodic directions.

    Returns:
        ``(i, j, distance in A)`` or None.
    """
    distances, partners = nearest(positions, cell, pbc, limit)
    if not len(distances):
        return None
    closest = int(distances.argmin())
    if distances[closest] >= limit:
        return None
    first, second = sorted((closest, int(partners[closest])))
    return first, second, float(distances[closest])


def nearest(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other atom of each atom; images within ``reach`` of the cell's faces are
    included.

    Args:
        positions: (N, 3) A. cell: (3, 3) A. pbc: (3,) bool. reach: A.

    Returns:
        (N,) distances in A, exact below ``reach`` and otherwise an upper bound, inf for an isolated
        atom; (N,) numbers of the neighbours.
    """
    from scipy.spatial import cKDTree  # only now: it costs the start of a command some time

    count = len(positions)
    points, owner = positions, np.arange(count)
    if pbc.any() and count:
        inverse = np.linalg.inv(cell)
        points = positions @ inverse
        points = np.where(pbc, points - np.floor(points), points)
        widths = reach * np.linalg.norm(inverse, axis=0)  # of `reach` in fractions of the cell
        for axis in np.flatnonzero(pbc):
            along = points[:, axis]
            low = np.flatnonzero(along < widths[axis])
            high = np.flatnonzero(along >= 1 - widths[axis])
            if len(low) or len(high):
                images = points[np.concatenate([low, high])]
                images[: len(low), axis] += 1
                images[len(low) :, axis] -= 1
                points = np.concatenate([points, images])
                owner = np.concatenate([owner, owner[low], owner[high]])
        points = points @ cell
    if len(points) < 2:
        return np.full(count, np.inf), np.zeros(count, dtype=int)
    distances, partners = cKDTree(points).query(points[:count], k=2)
    # of two atoms at the same position either may come first
    own = partners[:, 0] == np.arange(count)
    return distances[:, 1], owner[np.where(own, partners[:, 1], partners[:, 0])]


def lonely_atom(
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    cutoff: float,
    distances: np.ndarray | None = None,
) -> int | None:
    """An atom without any neighbour within ``cutoff``, including images (also its own).

    Args:
        positions: (N, 3) A. cell: (3, 3) A. pbc: (3,) bool. cutoff: A.
        distances: (N,) A, upper bounds of the distances to the nearest neighbours, if known.

    Returns:
        Its number; None if every atom has a neighbour.

    Raises:
        ValueError: a cell too skewed for its size.
    """
    if distances is None:
        distances, _ = nearest(positions, cell, pbc, 0.0)
    suspects = np.flatnonzero(~(distances <= cutoff))
    if not len(suspects):
        return None
    if not pbc.any():
        return int(suspects[0])
    if (np.linalg.norm(cell[pbc], axis=1) <= cutoff).any():
        return None  # every atom has its own image as a neighbour
    inverse = np.linalg.inv(cell)
    fractions = positions @ inverse
    fractions = np.where(pbc, fractions - np.floor(fractions), fractions)
    reach = np.where(pbc, np.ceil(cutoff * np.linalg.norm(inverse, axis=0)), 0).astype(int)
    if np.prod(2.0 * reach + 1) > _MAX_IMAGES:
        raise ValueError("a cell so skewed that its images cannot be counted")
    shifts = np.array(list(product(*(range(-n, n + 1) for n in reach)))) @ cell
    points = fractions @ cell
    for atom in suspects:
        found = False
        for shift in shifts:
            apart = np.linalg.norm(points + shift - points[atom], axis=1)
            if not shift.any():
                apart[atom] = np.inf
            if (apart <= cutoff).any():
                found = True
                break
        if not found:
            return int(atom)
    return None


def flattest(cell: np.ndarray, pbc: np.ndarray) -> float:
    """The smallest height of the cell in its periodic directions, A.

    Raises:
        numpy.linalg.LinAlgError: a cell without volume.
    """
    inverse = np.linalg.inv(cell)
    return float(1 / np.sqrt((inverse * inverse).sum(axis=0)[pbc].max(initial=0.0)))
