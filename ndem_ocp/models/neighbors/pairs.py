"""Pairs of atoms within a radius, with distances computed as in fairchem."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ndem_ocp.models.neighbors.structures import Structures, boxes

SAME_ATOM = 0.0001  # A^2, as in fairchem: closer than this is an atom itself, not a pair
CPU_PAIRS, GPU_PAIRS = 1 << 17, 1 << 24  # computed at a time; on a CPU they fit in its cache


class Pairs(NamedTuple):
    """Pairs of atoms, sorted by target, source and image."""

    target: Tensor  # (P,)
    source: Tensor  # (P,)
    image: Tensor  # (P,) row of Structures.images
    squared: Tensor  # (P,) squared distance, A^2, in float32 as in fairchem

    def where(self, mask: Tensor) -> Pairs:
        chosen = mask.nonzero().squeeze(-1)
        return Pairs(*(field[chosen] for field in self))


class Surroundings(NamedTuple):
    """Atoms of all images within a radius of the bounding box of a structure's targets."""

    radius: Tensor  # (B,) A
    atom: Tensor  # (M,)
    image: Tensor  # (M,)
    place: Tensor  # (M, 3) position, A
    number: Tensor  # (B,) of surrounding atoms


def surroundings(structures: Structures, targets: Tensor, radius: Tensor) -> Surroundings:
    """Surroundings of these targets within a radius (B,) per structure, by atom and image."""
    pos, graph, shifts = structures.pos, structures.graph, structures.shifts
    number, device = len(structures.natoms), pos.device
    # with a margin for the rounding of distances
    reach = (radius + 1e-3 + 1e-6 * pos.abs().max())[:, None]
    low, high = boxes(pos[targets], graph[targets], number)
    low, high = low - reach, high + reach
    first_atom, last_atom = boxes(pos, graph, number)
    # first the images that overlap the box, then their atoms inside it
    touches = (first_atom[:, None] + shifts <= high[:, None]) & (
        last_atom[:, None] + shifts >= low[:, None]
    )
    touches = touches.all(-1)
    images = touches.nonzero()[:, 1]
    count = touches.sum(1)
    start = count.cumsum(0) - count
    per_atom = count[graph]
    atom = torch.repeat_interleave(torch.arange(len(pos), device=device), per_atom)
    before = start[graph] - (per_atom.cumsum(0) - per_atom)
    image = images[torch.arange(len(atom), device=device) + before[atom]]
    of = graph[atom]
    place = pos[atom] + shifts[of, image]
    inside = ((place >= low[of]) & (place <= high[of])).all(-1).nonzero().squeeze(-1)
    counted = torch.bincount(of[inside], minlength=number)
    return Surroundings(radius, atom[inside], image[inside], place[inside], counted)


def pairs_of(structures: Structures, targets: Tensor, around: Surroundings) -> Pairs:
    """All pairs of these targets (in ascending order) within the radius of ``around``."""
    found = []
    for near, squared, first_row, first_column in _measured(structures, targets, around):
        which, row, column = near.nonzero(as_tuple=True)
        squared = squared[which, row, column]
        found.append((row + first_row[which], column + first_column[which], squared))
    row, column, squared = (torch.cat(part) for part in zip(*found))
    pairs = Pairs(targets[row], around.atom[column], around.image[column], squared)
    return pairs.where(squared > SAME_ATOM)


def atom_with_most(structures: Structures, around: Surroundings) -> Tensor:
    """() index of the atom with the most neighbours within the radius, in the whole batch."""
    everyone = torch.arange(len(structures.pos), device=structures.pos.device)
    numbers, atoms = [], []
    for near, squared, first_row, _ in _measured(structures, everyone, around):
        near &= squared > SAME_ATOM
        number, place = near.view(torch.uint8).sum(-1, dtype=torch.int32).view(-1).max(0)
        height = near.shape[1]
        numbers.append(number)
        atoms.append(first_row[place // height] + place % height)
    return torch.stack(atoms)[torch.stack(numbers).argmax()]


def _measured(
    structures: Structures, targets: Tensor, around: Surroundings
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Squared distances between targets and surrounding atoms, for a few structures at a time.

    Yields:
        (G, T, M) whether they are within the radius; (G, T, M) squared distances; (G,) index of the
        first target and (G,) of the first surrounding atom of each structure.
    """
    pos, graph = structures.pos, structures.graph
    # fairchem compares with the square of a Python number, rounded to float32
    radius = around.radius
    limit = torch.where(radius < structures.cutoff, radius * radius, structures.cutoff**2)
    rows = torch.bincount(graph[targets], minlength=len(radius))
    columns = around.number
    first_row, first_column = rows.cumsum(0) - rows, columns.cumsum(0) - columns
    for part in _portions(torch.stack([rows, columns]).tolist(), pos.device):
        squared = _squared(
            _padded(pos[targets[part.rows]], rows[part.graphs], part.height),
            _padded(around.place[part.columns], columns[part.graphs], part.width),
        )
        near = squared <= limit[part.graphs, None, None]
        yield near, squared, first_row[part.graphs], first_column[part.graphs]


class _Portion(NamedTuple):
    """Structures whose distances are computed together."""

    graphs: slice
    rows: slice  # among all targets
    columns: slice  # among all surrounding atoms
    height: int  # largest number of targets of a structure
    width: int  # largest number of surrounding atoms of a structure


def _portions(counts: list[list[int]], device: torch.device) -> Iterator[_Portion]:
    budget = CPU_PAIRS if device.type == "cpu" else GPU_PAIRS
    first = row = column = 0
    while first < len(counts[0]):
        height = width = rows = columns = 0
        last = first
        for more_rows, more_columns in zip(counts[0][first:], counts[1][first:]):
            taller, wider = max(height, more_rows), max(width, more_columns)
            if last > first and (last + 1 - first) * taller * wider > budget:
                break
            height, width, last = taller, wider, last + 1
            rows, columns = rows + more_rows, columns + more_columns
        yield _Portion(
            slice(first, last),
            slice(row, row + rows),
            slice(column, column + columns),
            height,
            width,
        )
        first, row, column = last, row + rows, column + columns


def _padded(points: Tensor, counts: Tensor, longest: int) -> Tensor:
    """(3, G, longest) coordinates of the points of G structures, padded with NaN."""
    if len(counts) == 1:
        return points.T.contiguous()[:, None]
    there = torch.arange(longest, device=points.device) < counts[:, None]
    padded = points.new_full((3, *there.shape), math.nan)
    return padded.masked_scatter_(there, points.T.contiguous())


def _squared(targets: Tensor, places: Tensor) -> Tensor:
    """(G, T, M) squared distances, summed over x, y, z with fairchem's rounding."""
    x, y, z = ((a[:, :, None] - b[:, None, :]).square_() for a, b in zip(targets, places))
    return x.add_(y).add_(z)
