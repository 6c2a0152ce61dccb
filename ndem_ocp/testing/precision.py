"""Running fairchem's models in float64, to check equivariance and gradients to rounding."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from fairchem.core.models.base import GraphModelMixin, HydraModel
from torch import Tensor

from ndem_ocp.models.graphs import edge_index_of

_ROUNDING = 1e-3  # Angstrom, of float32 positions in a cell


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """fairchem's models make some of their tensors in torch's default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def use_float64_graphs(model: torch.nn.Module) -> None:
    """Let a model's backbone and heads run in float64, although fairchem's graphs are float32.

    Neighbours are found in float32; edge vectors are computed again in the dtype of the data.
    """
    for module in model.modules():
        if isinstance(module, GraphModelMixin) and not isinstance(module, HydraModel):
            _in_dtype_of_data(module)


def _in_dtype_of_data(module: torch.nn.Module) -> None:
    generate = module.generate_graph

    def generate_graph(data: Any, *args: Any, **options: Any) -> Any:
        single = copy.copy(data)
        single.pos, single.cell = data.pos.detach().float(), data.cell.float()
        with default_dtype(torch.float32):
            graph = generate(single, *args, **options)
        return graph_in_dtype(graph, data)

    module.generate_graph = generate_graph


def graph_in_dtype(graph: Any, data: Any) -> Any:
    """A graph with its vectors computed again from ``data``, in the dtype of its positions.

    Args:
        graph: result of a backbone's ``generate_graph``: fairchem's GraphData, another object with
            its fields, a dict, or a tuple, list or named tuple in any order. Its entries are
            identified by name, or else by their values.
        data: the batch; edge vectors are position of source minus position of target.

    Raises:
        ValueError: for a tuple or list in which there is no edge index.
    """
    if isinstance(graph, (tuple, list)):
        return _by_value(graph, data)
    fields = graph if isinstance(graph, dict) else vars(graph)  # eSEN's is a dict
    offsets = fields["cell_offsets"].to(data.pos.dtype)
    vector, shift = _vectors(data, fields["edge_index"], offsets)
    fields.update(
        edge_distance_vec=vector,
        edge_distance=vector.norm(dim=-1).clone(),  # PaiNN writes into it
        cell_offsets=offsets,
        offset_distances=shift,
    )
    return graph


def _vectors(data: Any, edge_index: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Of each edge the vector from target to source, and the part of it that is the cell's."""
    source, target = edge_index
    shift = torch.einsum("ei,eij->ej", offsets, data.cell[data.batch[source]])
    return data.pos[source] - data.pos[target] + shift, shift


def _by_value(graph: Sequence[Any], data: Any) -> Any:
    """A tuple or list whose entries have no names; each is identified by its values."""
    edge_index = edge_index_of(graph)
    edges = edge_index.shape[1]
    whole = [part for part in graph if _is_offsets(part, edges)]
    dtype = data.pos.dtype
    # no cell, no offsets; where there are several, the integers are the cells' numbers
    offsets = whole[0].to(dtype) if whole else data.pos.new_zeros(edges, 3)
    vector, shift = _vectors(data, edge_index, offsets)
    known = [offsets, shift, vector, -vector, vector.norm(dim=-1).clone()]
    parts = [_same_as(part, known, edges) for part in graph]
    return type(graph)(*parts) if hasattr(graph, "_fields") else type(graph)(parts)


def _is_offsets(part: Any, edges: int) -> bool:
    if not (isinstance(part, Tensor) and part.shape == (edges, 3)):
        return False
    return not part.is_floating_point() or bool((part == part.round()).all())


def _same_as(part: Any, known: Sequence[Tensor], edges: int) -> Any:
    """The tensor of ``known`` that has the numbers of ``part``; ``part`` if none has."""
    if not isinstance(part, Tensor) or part.dim() == 0 or part.shape[0] != edges:
        return part
    for candidate in known:
        if candidate.shape == part.shape and torch.allclose(
            part.detach().to(candidate.dtype), candidate.detach(), atol=_ROUNDING
        ):
            return candidate
    return part
