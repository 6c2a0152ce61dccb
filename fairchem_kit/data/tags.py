"""OC20's tags (0 below the surface, 1 surface, 2 adsorbate) and tags of other conventions."""

from __future__ import annotations

import numpy as np

#: elements taken as adsorbate at the end of the list of atoms: H, C, N, O
ADSORBATE_ELEMENTS = (1, 6, 7, 8)
#: A; a wider empty layer of the cell is the vacuum above a surface
_VACUUM = 4.0


def derive_tags(numbers: np.ndarray, fixed: np.ndarray, periodic: bool) -> np.ndarray:
    """Derive OC20's tags if the source has none.

    0 = fixed atoms, 2 = the free C, H, N and O atoms at the end of the list (the adsorbate, which
    OC20 puts last), 1 = all other atoms. In a molecule (not periodic) all atoms but fixed ones are
    adsorbate, 2. If all atoms of a periodic system would be adsorbate by this rule, slab and
    adsorbate cannot be distinguished and all free atoms are 1.

    Args:
        numbers: (N,) atomic numbers.
        fixed: (N,) 1 for fixed atoms.
        periodic: the structure is periodic in some direction.

    Returns:
        (N,) int64 tags.
    """
    free = fixed == 0
    tags = free.astype(np.int64)
    if not periodic:
        return 2 * tags
    candidate = np.isin(numbers, ADSORBATE_ELEMENTS) & free
    others = np.flatnonzero(~candidate)
    if len(others):
        tags[others[-1] + 1 :] = 2
    return tags


def tags_from_layers(tags: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """OC20's tags from ASE's, which ``ase.build`` makes: 0 = adsorbate, layers 1, 2, ... from the
    top. Fixed atoms become 0, the adsorbate 2, other layers 1, as OC20 has it."""
    return np.where(fixed != 0, 0, np.where(tags == 0, 2, 1))


def are_layers(
    tags: np.ndarray,
    numbers: np.ndarray,
    fixed: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
) -> bool:
    """Whether tags number layers from the top, as ``ase.build`` does, and are not OC20's.

    OC20's tags increase with the height above the slab's lowest atoms, ASE's decrease. A slab that
    is upside down is recognised by its atoms: OC20's adsorbate (2) is never fixed and not a metal,
    and its atoms below the surface (0) are fixed.

    Args:
        tags, numbers, fixed: (N,). positions: (N, 3) A. cell: (3, 3) A. pbc: (3,) bool.
    """
    values = np.unique(tags)
    heights = _heights(positions, cell, pbc)
    if heights is None or len(values) < 2 or values[0] < 0:
        return False
    means = np.array([heights[tags == value].mean() for value in values])
    if not (np.diff(means) < 0).all():
        return False
    if values[-1] > 2:
        return True
    adsorbate = tags == 2
    if adsorbate.any():
        return bool(
            fixed[adsorbate].any() or (~np.isin(numbers[adsorbate], ADSORBATE_ELEMENTS)).any()
        )
    return not fixed[tags == 0].any()


def _heights(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray | None:
    """(N,) A above the vacuum of a slab; None if there is no vacuum in one direction."""
    if not pbc.any():
        return None
    inverse = np.linalg.inv(cell)
    planes = 1 / np.linalg.norm(inverse, axis=0)  # A, distances of the lattice planes
    along = positions @ inverse
    open_axes = np.flatnonzero(~pbc)
    if len(open_axes) == 1:
        return along[:, open_axes[0]] * planes[open_axes[0]]
    if len(open_axes):
        return None
    along -= np.floor(along)
    ordered = np.sort(along, axis=0)
    gaps = np.diff(ordered, axis=0, append=ordered[:1] + 1) * planes
    widest = gaps.max(axis=0)
    axis = int(widest.argmax())
    if widest[axis] < _VACUUM:
        return None
    bottom = (ordered[gaps[:, axis].argmax(), axis] + widest[axis] / planes[axis]) % 1
    return ((along[:, axis] - bottom + 1e-9) % 1) * planes[axis]
