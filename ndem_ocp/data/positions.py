"""Positions near the origin, where float32 holds them to a fraction of a milliangstrom."""

from __future__ import annotations

import numpy as np

#: A; float32 numbers of this size are 6e-5 A apart
FAR = 1000.0


def near_origin(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The same structure without coordinates that float32 cannot hold.

    :func:`near_cell` first. What is still further than :data:`FAR` from the origin (there is no
    lattice, or the cell itself is far away) is moved as a whole, by multiples of FAR, so that
    consecutive frames are moved alike.

    Args:
        positions: (N, 3) A, float64. cell: (3, 3) A, rows are lattice vectors. pbc: (3,) bool.

    Returns:
        (N, 3) float64; the given array where nothing is to be moved.
    """
    positions = near_cell(positions, cell, pbc)
    if np.abs(positions).max(initial=0.0) > FAR:
        positions = positions - FAR * np.round(positions.mean(axis=0) / FAR)
    return positions


def near_cell(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Atoms that are more than one cell outside of the cell, back in it by lattice vectors; others
    stay where they are. MD that is not wrapped can carry atoms 1e6 A away, where float32 numbers
    are 0.06 A apart. Arguments and result are those of :func:`near_origin`."""
    if not pbc.any():
        return positions
    cells = np.where(pbc, np.floor(positions @ np.linalg.inv(cell)), 0.0)
    away = (np.abs(cells) > 1).any(axis=1)
    if not away.any():
        return positions
    return positions - np.where(away[:, None], cells, 0.0) @ cell
