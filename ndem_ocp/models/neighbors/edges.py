"""Which pairs become edges: the nearest of each atom, chosen as fairchem chooses."""

from __future__ import annotations

import math
from typing import Any

import torch
from fairchem.core.common.utils import get_max_neighbors_mask
from torch import Tensor

from ndem_ocp.models.neighbors.pairs import Pairs, atom_with_most, pairs_of, surroundings
from ndem_ocp.models.neighbors.structures import Structures, structures_of

# fairchem keeps all that are at most this much beyond the last neighbour unless told to be strict.
DEGENERATE = 0.01  # A^2
ROUNDING = 0.001  # A^2, more than rounding can do to a squared distance within a cutoff


@torch.no_grad()
def periodic_edges(
    data: Any, cutoff: float, max_neighbors: int, strictly: bool
) -> tuple[Tensor, Tensor, Tensor] | None:
    """What ``radius_graph_pbc(data, cutoff, max_neighbors, strictly)`` returns, to the bit.

    Args:
        data: batch of B structures with ``pos`` (N, 3), ``cell`` (B, 3, 3) and ``natoms``, in
            Angstrom and float32; ``pbc`` (B, 3) where there is one.
        cutoff: A.
        max_neighbors: of the nearest to keep for each atom.
        strictly: no more than those, whatever is equally far.

    Returns:
        (2, E) source and target, (E, 3) image of the source, (B,) edges of each structure. None
        for what is left to fairchem: no direction periodic (it has one image to look at, and does
        that well), different directions within a batch, cells without volume, all neighbours kept.
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
    """Each atom's nearest, and all that are as near as the last of them."""
    radius = structures.radius
    everyone = torch.arange(len(structures.pos), device=radius.device)
    pairs = pairs_of(structures, everyone, surroundings(structures, everyone, radius))
    # nothing beyond the first radius can be among the nearest of an atom that found enough there
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
    """The nearest pairs of each target, and those that are as near as the last of them."""
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
    """max_neighbors of each atom, those that fairchem chooses where several are equally far.

    It takes them from a sort that need not be stable: which of equal values comes first can depend
    on the whole row, and on the length of the batch's longest. So these rows are made once more
    as fairchem makes them, together with the longest.
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
    """Pairs of two sets of targets, by target again."""
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
