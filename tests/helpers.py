"""Helpers that are not fixtures."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def on_meta_device() -> Iterator[None]:
    """Parameters are made on the meta device, buffers and all computing stays on the CPU.

    torch.device("meta") would also move tensors that fairchem's constructors convert to numpy.
    """
    register = torch.nn.Module.register_parameter

    def on_meta(module, name, parameter):
        if parameter is not None:
            parameter = torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register


def use_float64_graphs(backbone: torch.nn.Module) -> None:
    """Let a fairchem backbone run in float64: its periodic graphs are float32 throughout.

    Neighbours are found in float32, edge vectors are computed again in the dtype of the data.
    """
    generate = backbone.generate_graph

    def generate_graph(data, **options):
        single = copy.copy(data)
        single.pos, single.cell = data.pos.float(), data.cell.float()
        with default_dtype(torch.float32):
            graph = generate(single, **options)
        source, target = graph.edge_index
        cells = data.cell[data.batch[source]]
        shift = torch.einsum("ei,eij->ej", graph.cell_offsets.to(data.pos.dtype), cells)
        graph.edge_distance_vec = data.pos[source] - data.pos[target] + shift
        graph.edge_distance = graph.edge_distance_vec.norm(dim=-1)
        return graph

    backbone.generate_graph = generate_graph


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """fairchem's EquiformerV2 makes its Wigner matrices in torch's default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def state_of(trainer) -> dict[str, torch.Tensor]:
    """Weights of a trainer's model, without the prefix of DDP."""
    return trainer._unwrapped_model.state_dict()
