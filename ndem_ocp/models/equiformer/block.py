"""Feed-forward network and transformer block of EquiformerV2, with upstream's parameters."""

from __future__ import annotations

import torch
from fairchem.core.models.equiformer_v2.transformer_block import FeedForwardNetwork, TransBlockV2
from torch import Tensor
from torch.nn.functional import silu

from ndem_ocp.models.equiformer.attention import graph_attention, grid_matrices
from ndem_ocp.models.equiformer.autograd import compute_dtype
from ndem_ocp.models.equiformer.edges import Edges
from ndem_ocp.models.equiformer.grid import grid_mlp


def feed_forward(module: FeedForwardNetwork, x: Tensor, edges: Edges | None) -> Tensor:
    """The network after the attention, (N, K, C) -> (N, K, O); ``edges`` caches its constants."""
    dtype, lmax = compute_dtype(x), module.max_lmax
    x = x.to(dtype)
    first, second = module.so3_linear_1, module.so3_linear_2
    degree = first.expand_index
    w_in, w_out = first.weight, second.weight  # (L + 1, H, C), (L + 1, O, H)
    gate, bias, middle = None, first.bias, None
    if module.use_grid_mlp:
        outer_in, middle, outer_out = (module.grid_mlp[number].weight for number in (0, 2, 4))
        w_in, bias = outer_in @ w_in, outer_in @ bias
        gate = scalar_gate(module, x)
        inner = w_out @ outer_out
        # degree 0 comes from the gate, without passing through the grid
        w_out = inner if gate is None else torch.cat([w_out[:1], inner[1:]])
        middle = middle.t().to(dtype)
    elif module.use_gate_act:
        return _gated(module, x, dtype)
    elif module.gating_linear is not None:
        gate = silu(module.gating_linear(x[:, 0]))
    grid = module.SO3_grid[lmax][lmax]
    to_grid, from_grid = grid_matrices(grid, None, dtype, gate is not None, edges)
    out = grid_mlp(
        x,
        gate,
        w_in.to(dtype).transpose(1, 2)[degree],
        bias.to(dtype),
        middle,
        w_out.to(dtype).transpose(1, 2)[degree],
        to_grid,
        from_grid,
    )
    return _with_bias(out, second.bias)


def scalar_gate(module: FeedForwardNetwork, x: Tensor) -> Tensor | None:
    """(N, H) degree 0 of the hidden features if it does not pass through the grid, else None."""
    return module.scalar_mlp(x[:, 0]) if module.use_sep_s2_act else None


def _gated(module: FeedForwardNetwork, x: Tensor, dtype: torch.dtype) -> Tensor:
    first, second = module.so3_linear_1, module.so3_linear_2
    inner = _by_degree(x, first.weight[first.expand_index].to(dtype))
    inner = _with_bias(inner, first.bias)
    out = module.gate_act(module.gating_linear(x[:, 0]), inner)
    return _with_bias(_by_degree(out, second.weight[second.expand_index].to(dtype)), second.bias)


def _by_degree(x: Tensor, weight: Tensor) -> Tensor:
    """(N, K, C) times (K, O, C)."""
    return torch.bmm(x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)


def _with_bias(x: Tensor, bias: Tensor) -> Tensor:
    return torch.cat([x[:, :1] + bias, x[:, 1:]], dim=1)


def transformer_block(module: TransBlockV2, x: Tensor, edges: Edges, batch: Tensor) -> Tensor:
    """One layer, (N, K, C) -> (N, K, C').

    Args:
        module: holds the parameters.
        x: (N, K, C)
        edges: of the N atoms.
        batch: (N,) structure of each atom, for drop-path, which drops whole structures.
    """
    x = x + _dropped(module, graph_attention(module.ga, module.norm_1(x), edges), batch)
    out = _dropped(module, feed_forward(module.ffn, module.norm_2(x), edges), batch)
    if module.ffn_shortcut is not None:
        shortcut = module.ffn_shortcut
        x = _with_bias(_by_degree(x, shortcut.weight[shortcut.expand_index]), shortcut.bias)
    return x + out


def _dropped(module: TransBlockV2, x: Tensor, batch: Tensor) -> Tensor:
    if module.drop_path is not None:
        x = module.drop_path(x, batch)
    if module.proj_drop is not None:
        x = module.proj_drop(x, batch)
    return x
