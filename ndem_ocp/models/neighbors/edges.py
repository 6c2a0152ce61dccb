"""Which pairs become edges: the nearest of each atom, with fairchem's choice among ties."""

from __future__ import annotations

import math
from typing import Any

import torch
from fairchem.core.common.utils import get_max_neighbors_mask
from torch import Tensor

from ndem_ocp.models.neighbors.pairs import Pairs, atom_with_most, pairs_of, surroundings
from ndem_ocp.models.neighbors.structures import Structures, structures_of

# unless strict, fairchem also keeps atoms at most this much farther than the last neighbour
DEGENERATE = 0.01  # A^2
ROUNDING = 0.001  # A^2, larger than the rounding error of a squared distance within a cutoff


@torch.no_grad()
def periodic_edges(
    data: Any, cutoff: float, max_neighbors: int, strictly: bool
) -> tuple[Tensor, Tensor, Tensor] | None:
    """What ``radius_graph_pbc(data, cutoff, max_neighbors, strictly)`` returns, to the bit.

    Args:
        data: batch of B structures with ``pos`` (N, 3), ``cell`` (B, 3, 3) and ``natoms``, in
            Angstrom and float32, and optionally ``pbc`` (B, 3).
        cutoff: A.
        max_neighbors: number of nearest neighbours to keep for each atom.
        strictly: never keep more, even if others are equally far.

    Returns:
        (2, E) source and target, (E, 3) image of the source, (B,) number of edges of each
        structure. None in the cases that are left to fairchem: no periodic direction (fairchem is
        fast for a single image), structures of a batch with different periodic directions, cells
        without volume, no limit on the number of neighbours.
    """
    structures = structures_of(data, cutoff, max_neighbors)
    if structures is None:
        return None
    edges = _nearest_pairs(structures, max_neighbors, strictly)
    if strictly:
        edges = _with_fairchems_ties(structures, edges, max_neighbors)
    neighbors = torch.zeros_like(structures.natoms)
    neighbors.index_add_(0, structures.graph[edges.target], torch.ones_like(edges.target))
    index = torch.stack((edges.source, edges.target))
    return index, structures.images[edges.image], neighbors


def _nearest_pairs(structures: Structures, max_neighbors: int, strictly: bool) -> Pairs:
    """The nearest neighbours of each atom, including those equally far as the last one."""
    radius = structures.radius
    everyone = torch.arange(len(structures.pos), device=radius.device)
    pairs = pairs_of(structures, everyone, surroundings(structures, everyone, radius))
    # atoms with enough neighbours within the first radius need no second search
    limit = (radius * radius - DEGENERATE - ROUNDING)[structures.graph]
    sure = pairs.squared <= limit[pairs.target]
    number = torch.zeros_like(everyone).index_add_(0, pairs.target, sure.long())
    lacking = (number <= max_neighbors) & (radius < structures.cutoff)[structures.graph]
    targets = lacking.nonzero().squeeze(-1)
    if len(targets) == 0:
        return _nearest(pairs, everyone, max_neighbors, strictly)
    full = torch.full_like(radius, structures.cutoff)
    more = pairs_of(structures, targets, surroundings(structures, targets, full))
    pairs = pairs.where(~lacking[pairs.target])
    return _merged(
        _nearest(pairs, everyone, max_neighbors, strictly),
        _nearest(more, targets, max_neighbors, strictly),
        len(everyone),
    )


def _nearest(pairs: Pairs, targets: Tensor, max_neighbors: int, strictly: bool) -> Pairs:
    """The nearest pairs of each target, including those equally far as the last one."""
    row = torch.searchsorted(targets, pairs.target)
    number = torch.bincount(row, minlength=len(targets))
    wanted = max_neighbors if strictly else max_neighbors + 1
    most = int(number.max())
    if most < wanted:
        return pairs
    column = torch.arange(len(row), device=row.device) - (number.cumsum(0) - number)[row]
    table = pairs.squared.new_full((len(targets), most), math.inf)
    table[row, column] = pairs.squared
    last = table.kthvalue(wanted, dim=1).values
    if not strictly:
        last = last + DEGENERATE
    return pairs.where(pairs.squared <= last[row])


def _with_fairchems_ties(structures: Structures, edges: Pairs, max_neighbors: int) -> Pairs:
    """max_neighbors of each atom, with fairchem's choice where several are equally far.

    fairchem chooses by a sort that is not stable: which of two equal values comes first can depend
    on all distances of the atom, and on the largest number of neighbours in the batch. So for atoms
    with ties the distances are sorted again as fairchem does, together with those of the atom with
    the most neighbours.
    """
    everyone = torch.arange(len(structures.pos), device=edges.target.device)
    again = torch.bincount(edges.target, minlength=len(everyone)) > max_neighbors
    if not again.any():
        return edges
    around = surroundings(
        structures, everyone, torch.full_like(structures.radius, structures.cutoff)
    )
    again[atom_with_most(structures, around)] = True
    targets = again.nonzero().squeeze(-1)
    pairs = pairs_of(structures, targets, around)
    mask, _ = get_max_neighbors_mask(
        natoms=torch.tensor([len(targets)], device=targets.device),
        index=torch.searchsorted(targets, pairs.target),
        atom_distance=pairs.squared,
        max_num_neighbors_threshold=max_neighbors,
        enforce_max_strictly=True,
    )
    return _merged(edges.where(~again[edges.target]), pairs.where(mask), len(everyone))


def _merged(one: Pairs, other: Pairs, atoms: int) -> Pairs:
    """Pairs of two sets of targets together, sorted by target."""
    counts = [torch.bincount(pairs.target, minlength=atoms) for pairs in (one, other)]
    start = sum(counts).cumsum(0) - sum(counts)
    place = torch.cat(
        [
            torch.arange(len(pairs.target), device=start.device)
            + (start - (count.cumsum(0) - count))[pairs.target]
            for pairs, count in zip((one, other), counts)
        ]
    )
    joined = (torch.cat(fields) for fields in zip(one, other))
    return Pairs(*(torch.empty_like(field).index_copy_(0, place, field) for field in joined))
