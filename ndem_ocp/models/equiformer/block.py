"""Feed-forward network and transformer block of EquiformerV2, with upstream's parameters."""

from __future__ import annotations

from typing import NamedTuple

import torch
from fairchem.core.models.equiformer_v2.drop import GraphDropPath
from fairchem.core.models.equiformer_v2.so3 import SO3_LinearV2
from fairchem.core.models.equiformer_v2.transformer_block import FeedForwardNetwork, TransBlockV2
from torch import Tensor
from torch.nn.functional import silu

from ndem_ocp.models.equiformer.attention import graph_attention, grid_matrices
from ndem_ocp.models.equiformer.autograd import compute_dtype
from ndem_ocp.models.equiformer.edges import Edges
from ndem_ocp.models.equiformer.grid_mlp import GridWeights, grid_mlp
from ndem_ocp.models.equiformer.linear import linear_by_degree
from ndem_ocp.models.equiformer.norm import layer_norm


def feed_forward(module: FeedForwardNetwork, x: Tensor, edges: Edges | None) -> Tensor:
    """The network after the attention, (N, K, C) -> (N, K, O); ``edges`` caches its constants."""
    dtype, lmax = compute_dtype(x), module.max_lmax
    x = x.to(dtype)
    first, second = module.so3_linear_1, module.so3_linear_2
    gate, before, middle, after = None, None, None, None
    if module.use_grid_mlp:
        before, middle, after = (module.grid_mlp[number].weight for number in (0, 2, 4))
        gate = scalar_gate(module, x)
    elif module.use_gate_act:
        inner = module.gate_act(module.gating_linear(x[:, 0]), _by_degree(first, x))
        return _by_degree(second, inner)
    elif module.gating_linear is not None:
        gate = silu(module.gating_linear(x[:, 0]))
    weights = [first.weight, first.bias, before, middle, after, second.weight, second.bias]
    weights = [None if each is None else each.to(dtype) for each in weights]
    grid = module.SO3_grid[lmax][lmax]
    to_grid, from_grid = grid_matrices(grid, None, dtype, gate is not None, edges)
    return grid_mlp(x, gate, GridWeights(*weights), to_grid, from_grid)


def scalar_gate(module: FeedForwardNetwork, x: Tensor) -> Tensor | None:
    """(N, H) degree 0 of the hidden features if it does not pass through the grid, else None."""
    return module.scalar_mlp(x[:, 0]) if module.use_sep_s2_act else None


def _by_degree(module: SO3_LinearV2, x: Tensor) -> Tensor:
    weight, bias = module.weight.to(x.dtype), module.bias.to(x.dtype)
    return linear_by_degree(x, weight, bias, (0, len(weight)))


def transformer_block(
    module: TransBlockV2, x: Tensor, edges: Edges, structures: Structures
) -> Tensor:
    """One layer, (N, K, C) -> (N, K, C').

    Args:
        module: holds the parameters.
        x: (N, K, C)
        edges: of the N atoms.
        structures: of the atoms, for drop-path.
    """
    out = graph_attention(module.ga, layer_norm(module.norm_1, x), edges)
    x = _added(module, x, out, structures)
    out = feed_forward(module.ffn, layer_norm(module.norm_2, x), edges)
    if module.ffn_shortcut is not None:
        x = _by_degree(module.ffn_shortcut, x)
    return _added(module, x, out, structures)


class Structures(NamedTuple):
    """Which atoms belong to which structure."""

    batch: Tensor  # (N,) structure of each atom
    count: int


def _added(module: TransBlockV2, x: Tensor, out: Tensor, structures: Structures) -> Tensor:
    """x + out, where drop-path leaves out whole structures and scales the others."""
    factor = _drop_path(module.drop_path, x, structures)
    if module.proj_drop is not None:
        return x + module.proj_drop(out if factor is None else out * factor, structures.batch)
    return x + out if factor is None else torch.addcmul(x, out.to(x.dtype), factor)


def _drop_path(module: GraphDropPath | None, like: Tensor, structures: Structures) -> Tensor | None:
    """(N, 1, 1) factors, from the random numbers that upstream draws; None if all are 1."""
    if module is None or not module.training or module.drop_prob == 0:
        return None
    keep = 1 - module.drop_prob
    shape = (structures.count, 1, 1)
    drawn = torch.rand(shape, dtype=like.dtype, device=like.device).add_(keep).floor_()
    return drawn.div_(keep).index_select(0, structures.batch)
