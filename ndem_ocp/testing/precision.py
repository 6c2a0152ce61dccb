"""fairchem's models in float64, where equivariance and gradients can be checked to rounding."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from fairchem.core.models.base import GraphModelMixin, HydraModel


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
    """Let a model's backbone and heads run in float64: fairchem's graphs are float32 throughout.

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
        fields = graph if isinstance(graph, dict) else vars(graph)  # eSEN's is a dict
        source, target = fields["edge_index"]
        cells = data.cell[data.batch[source]]
        offsets = fields["cell_offsets"].to(data.pos.dtype)
        shift = torch.einsum("ei,eij->ej", offsets, cells)
        vector = data.pos[source] - data.pos[target] + shift
        fields.update(
            edge_distance_vec=vector,
            edge_distance=vector.norm(dim=-1).clone(),  # PaiNN writes into it
            cell_offsets=offsets,
            offset_distances=shift,
        )
        return graph

    module.generate_graph = generate_graph
