"""Radial functions: from distances and species to hidden features of the edges.

The last layer of a radial function belongs to the convolution that uses it (``convolution.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from fairchem.core.models.equiformer_v2.radial_function import RadialFunction
from torch import Tensor, nn
from torch.nn.functional import embedding, layer_norm, linear, silu

from ndem_ocp.models.equiformer.edges import Edges


class Radial(NamedTuple):
    """A radial function and the module that has the embeddings of species for it."""

    function: RadialFunction
    owner: nn.Module

    @property
    def last(self) -> nn.Linear:
        return self.function.net[-1]

    @property
    def shape(self) -> tuple[object, ...]:
        """Functions of equal shape can be computed together."""
        sizes = [(layer.in_features, layer.out_features) for layer in self.function.net[:-1:3]]
        if not self.owner.use_atom_edge_embedding:
            return tuple(sizes)
        ends = self.owner.source_embedding, self.owner.target_embedding
        return (*sizes, *(each.weight.shape for each in ends))


def radial_hidden(radial: Radial, edges: Edges) -> Tensor:
    """(E, h) output before the last layer, computed ahead (:func:`compute_ahead`) or here."""
    found = edges.radial.get(radial.function)
    return _hidden([radial], edges)[0] if found is None else found


def compute_ahead(radials: Sequence[Radial], edges: Edges) -> None:
    """The hidden features of these functions at once, where they are of equal shape."""
    groups: dict[tuple[object, ...], list[Radial]] = {}
    for radial in radials:
        groups.setdefault(radial.shape, []).append(radial)
    for group in groups.values():
        hidden = _hidden(group, edges)
        edges.radial.update(zip((radial.function for radial in group), hidden))


def _hidden(radials: list[Radial], edges: Edges) -> Sequence[Tensor]:
    """(E, h) for each function; all must have the same shape."""
    nets = [radial.function.net for radial in radials]
    hidden = _first(radials, edges).unflatten(1, (len(nets), -1))
    hidden = _normalised([net[1] for net in nets], hidden, across=0)
    hidden = hidden.transpose(0, 1)
    for place in range(3, len(nets[0]) - 1, 3):
        weight = _stack(net[place].weight for net in nets)
        bias = _stack(net[place].bias for net in nets)
        hidden = torch.baddbmm(bias[:, None], hidden, weight.transpose(1, 2))
        hidden = _normalised([net[place + 1] for net in nets], hidden, across=1)
    return hidden.unbind(0)


def _first(radials: list[Radial], edges: Edges) -> Tensor:
    """The first layers, (E, functions * h).

    If they also read the species of both atoms, this part is tabulated: one row per species instead
    of one product per edge.
    """
    firsts, owner = [radial.function.net[0] for radial in radials], radials[0].owner
    bias = torch.cat([first.bias for first in firsts])
    if not owner.use_atom_edge_embedding:
        return linear(edges.distance, torch.cat([first.weight for first in firsts]), bias)
    distances, tables = edges.distance.shape[1], []
    weight = _stack(first.weight for first in firsts)
    source = _stack(radial.owner.source_embedding.weight for radial in radials)
    target = _stack(radial.owner.target_embedding.weight for radial in radials)
    parts = weight.split([distances, source.shape[2], target.shape[2]], dim=2)
    for embeddings, part in ((source, parts[1]), (target, parts[2])):
        table = torch.bmm(embeddings, part.transpose(1, 2))
        tables.append(table.transpose(0, 1).flatten(1))
    hidden = linear(edges.distance, parts[0].flatten(0, 1), bias)
    hidden = hidden + embedding(edges.source_species, tables[0])
    return hidden + embedding(edges.target_species, tables[1])


def _normalised(norms: list[nn.LayerNorm], x: Tensor, across: int) -> Tensor:
    """Layer norm and SiLU; ``across``: the dimension of x, of 3, that is not the function's."""
    scaled = layer_norm(x, norms[0].normalized_shape, None, None, norms[0].eps)
    weight, bias = _stack(norm.weight for norm in norms), _stack(norm.bias for norm in norms)
    return silu(torch.addcmul(bias.unsqueeze(across), scaled, weight.unsqueeze(across)))


def _stack(parameters) -> Tensor:
    return torch.stack(tuple(parameters))
