"""Moving positions near the origin, where float32 resolves a fraction of a milliangstrom."""

from __future__ import annotations

import numpy as np

#: A; float32 numbers of this size are 6e-5 A apart
FAR = 1000.0


def near_origin(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The same structure without coordinates too large for float32.

    After :func:`near_cell`, a structure that is still further than :data:`FAR` from the origin
    (without a lattice, or with a cell far away) is moved as a whole by multiples of FAR, so that
    consecutive frames are moved by the same vector.

    Args:
        positions: (N, 3) A, float64. cell: (3, 3) A, rows are lattice vectors. pbc: (3,) bool.

    Returns:
        (N, 3) float64; the given array if nothing has to be moved.
    """
    positions = near_cell(positions, cell, pbc)
    if np.abs(positions).max(initial=0.0) > FAR:
        positions = positions - FAR * np.round(positions.mean(axis=0) / FAR)
    return positions


def near_cell(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Move atoms more than one cell outside the cell back into it by lattice vectors; others do not
    move. In unwrapped MD atoms can be 1e6 A away, where float32 numbers are 0.06 A apart. Arguments
    and result are those of :func:`near_origin`."""
    if not pbc.any():
        return positions
    cells = np.where(pbc, np.floor(positions @ np.linalg.inv(cell)), 0.0)
    away = (np.abs(cells) > 1).any(axis=1)
    if not away.any():
        return positions
    return positions - np.where(away[:, None], cells, 0.0) @ cell
