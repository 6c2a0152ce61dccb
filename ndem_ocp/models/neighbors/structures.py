"""A batch prepared for the search: fairchem's images, and the radius of the first search."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

# neighbours to expect in the first search, per neighbour that is needed
SURPLUS = 3.0
TINY_VOLUME = 0.01  # A^3


class Structures(NamedTuple):
    """A batch prepared for the search."""

    pos: Tensor  # (N, 3) A
    natoms: Tensor  # (B,)
    graph: Tensor  # (N,) structure of each atom
    images: Tensor  # (C, 3) float, indices of the cells that fairchem searches, in its order
    shifts: Tensor  # (B, C, 3) A, displacements of these cells
    radius: Tensor  # (B,) A, for the first search
    cutoff: float  # A


class _Planes(NamedTuple):
    """Lattice planes of B cells."""

    faces: list[Tensor]  # 3 x (B, 3) A^2, normal to the planes of a, b and c
    volume: Tensor  # (B, 1) A^3, signed
    inverse: list[Tensor]  # 3 x (B,) 1 / distance between planes, 1/A


def structures_of(data: Any, cutoff: float, max_neighbors: int) -> Structures | None:
    """The batch with fairchem's images, or None in cases left to fairchem.

    Waits for the device once.
    """
    pos, cell, natoms = data.pos, data.cell, data.natoms
    if pos.dtype != torch.float32 or cell.dtype != torch.float32:
        return None
    if max_neighbors <= 0 or len(pos) == 0:
        return None
    planes = _planes(cell)
    found = _repeats(data, planes, cutoff)
    if found is None:
        return None
    repeats, periodic = found
    images = torch.cartesian_prod(
        *(torch.arange(-each, each + 1, device=pos.device, dtype=torch.float) for each in repeats)
    )
    columns = images.T.view(1, 3, len(images)).expand(len(natoms), -1, -1)
    shifts = torch.bmm(cell.transpose(1, 2), columns).transpose(1, 2)
    graph = torch.repeat_interleave(
        torch.arange(len(natoms), device=pos.device), natoms, output_size=len(pos)
    )
    per_atom = _volume_with_atoms(pos, graph, planes, periodic) / natoms
    radius = (SURPLUS * max_neighbors * per_atom * (3 / (4 * math.pi))) ** (1 / 3)
    return Structures(pos, natoms, graph, images, shifts, radius.clamp(max=cutoff), cutoff)


def _planes(cell: Tensor) -> _Planes:
    """Computed with the same operations as fairchem, for the same number of images."""
    a, b, c = cell.unbind(1)
    faces = [torch.cross(*pair, dim=-1) for pair in ((b, c), (c, a), (a, b))]
    volume = torch.sum(a * faces[0], dim=-1, keepdim=True)
    return _Planes(faces, volume, [torch.norm(face / volume, p=2, dim=-1) for face in faces])


def _repeats(data: Any, planes: _Planes, cutoff: float) -> tuple[list[float], list[bool]] | None:
    """Number of images on either side in each direction, and which directions are periodic."""
    images = [torch.ceil(cutoff * inverse).max() for inverse in planes.inverse]
    pbc = data.pbc if hasattr(data, "pbc") else planes.volume.new_ones(1, 3)
    pbc = torch.atleast_2d(pbc).bool()
    usual = data.pos.isfinite().all() & (planes.volume.abs().min() > TINY_VOLUME)
    known = torch.stack([value.float() for value in (*images, *pbc.any(0), *pbc.all(0), usual)])
    *images, a, b, c, all_a, all_b, all_c, usual = known.tolist()
    if not usual or [a, b, c] != [all_a, all_b, all_c] or not any([a, b, c]):
        return None
    periodic = [bool(on) for on in (a, b, c)]
    return [each if on else 0.0 for each, on in zip(images, periodic)], periodic


def _volume_with_atoms(pos: Tensor, graph: Tensor, planes: _Planes, periodic: list[bool]) -> Tensor:
    """(B,) A^3, volume of the part of the cell with atoms, plus 1 A: a slab without its vacuum.

    From the density of atoms in it follows a guess how far neighbours are. Results do not depend on
    the guess, only the speed does.
    """
    heights = 1 / torch.stack(planes.inverse, dim=-1)
    normals = torch.stack(planes.faces, dim=1) / planes.volume[:, :, None] * heights[:, :, None]
    low, high = boxes((pos[:, None, :] * normals[graph]).sum(-1), graph, len(heights))
    share = (high - low + 2) / heights
    limit = share.new_tensor([1.0 if on else math.inf for on in periodic])
    return planes.volume.abs().squeeze(-1) * torch.minimum(share, limit).prod(-1)


def boxes(points: Tensor, graph: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """(B, 3) smallest and largest coordinates of each structure's points; +-inf without points."""
    index = graph[:, None].expand(-1, 3)
    low = points.new_full((number, 3), math.inf).scatter_reduce(0, index, points, "amin")
    high = points.new_full((number, 3), -math.inf).scatter_reduce(0, index, points, "amax")
    return low, high
