"""Graph attention and edge-degree embedding of EquiformerV2, with upstream's parameters.

Each function takes one of fairchem's modules, for its parameters, and computes the same as the
module's own forward.
"""

from __future__ import annotations

import torch
from fairchem.core.models.equiformer_v2.input_block import EdgeDegreeEmbedding
from fairchem.core.models.equiformer_v2.so2_ops import SO2_Convolution
from fairchem.core.models.equiformer_v2.transformer_block import SO2EquivariantGraphAttention
from torch import Tensor, nn
from torch.nn.functional import silu

from ndem_ocp.models.equiformer.autograd import compute_dtype
from ndem_ocp.models.equiformer.constants import constant, index
from ndem_ocp.models.equiformer.convolution import RadialWeights, message, sum_messages
from ndem_ocp.models.equiformer.edges import Edges
from ndem_ocp.models.equiformer.grid import s2_activation
from ndem_ocp.models.equiformer.layout import Layout, layout
from ndem_ocp.models.equiformer.linear import linear_by_degree
from ndem_ocp.models.equiformer.radial import Radial, radial_hidden
from ndem_ocp.models.equiformer.softmax import edge_softmax


def graph_attention(
    module: SO2EquivariantGraphAttention,
    x: Tensor,
    edges: Edges,
    degrees: tuple[int, int] | None = None,
) -> Tensor:
    """Attention of one layer.

    Args:
        module: holds the parameters.
        x: (N, K, C)
        edges: of the N atoms.
        degrees: the degrees to compute, (first, last + 1); all by default.

    Returns:
        (N, K', output channels), where K' is the number of coefficients of these degrees.
    """
    dtype = compute_dtype(x)
    whole = edges.layout
    kept = layout(whole.lmax, whole.mmax, degrees) if degrees else whole
    y, extra = _first_convolution(module, x, edges, dtype)
    split = module.num_heads * module.attn_alpha_channels
    features, gate = extra.split([split, extra.shape[1] - split], dim=1)
    attention = _attention_weights(module, features, edges, len(x))
    inputs = layout(whole.lmax, max(kept.orders))  # orders that the second convolution needs
    y = _activate(module, y, gate, edges, inputs)
    out = _second_convolution(module, y, attention.to(dtype), edges, inputs, kept, len(x))
    weight, bias = module.proj.weight.to(dtype), module.proj.bias.to(dtype)
    return linear_by_degree(out, weight, bias, kept.kept)


def _first_convolution(
    module: SO2EquivariantGraphAttention, x: Tensor, edges: Edges, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(E, R, H) coefficients, and (E, X) invariants: attention features followed by gates."""
    convolution: SO2_Convolution = module.so2_conv_1
    lay = edges.layout
    radial = radial_of(module)
    hidden, last = radial_hidden(radial, edges), radial.last
    shared, start = [], 0
    for order in lay.orders:
        count = len(lay.of_order(order))
        first = order if module.use_m_share_rad else start
        shared.append(slice(first, first + count))
        start += count
    return message(
        x.to(dtype),
        RadialWeights(hidden.to(dtype), last.weight.to(dtype), last.bias.to(dtype)),
        edges.ends(dtype),
        lay,
        shared,
        [weight.to(dtype) for weight in order_weights(convolution)],
        convolution.fc_m0.bias.to(dtype),
        convolution.extra_m0_output_channels,
    )


def radial_of(module: SO2EquivariantGraphAttention) -> Radial:
    """The radial function of the first convolution."""
    shared = module.use_m_share_rad
    return Radial(module.rad_func if shared else module.so2_conv_1.rad_func, module)


def order_weights(convolution: SO2_Convolution) -> list[Tensor]:
    """The weights of the orders m = 0, 1, ..."""
    return [convolution.fc_m0.weight, *(part.fc.weight for part in convolution.so2_m_conv)]


def _attention_weights(
    module: SO2EquivariantGraphAttention, features: Tensor, edges: Edges, num_nodes: int
) -> Tensor:
    """(E, heads); the weights of all edges to a target sum to one."""
    features = module.alpha_norm(features.reshape(-1, module.num_heads, module.attn_alpha_channels))
    # upstream's smooth leaky ReLU, a x + (1 - a) silu(x)
    features = features.lerp(silu(features), 1 - module.alpha_act.alpha)
    # as upstream: from its strides follows where dropout's random numbers go
    logits = torch.einsum("bik, ik -> bi", features, module.alpha_dot)
    of = edges.ends(logits.dtype).by_node
    weights = edge_softmax(logits, edges.target, num_nodes, of)
    if module.alpha_dropout is not None:
        weights = module.alpha_dropout(weights)
    return weights


def _activate(
    module: SO2EquivariantGraphAttention, y: Tensor, gate: Tensor, edges: Edges, inputs: Layout
) -> Tensor:
    """The nonlinearity between the two convolutions, (E, R, H) -> (E, R', H)."""
    whole = edges.layout
    rows = len(inputs.rows)  # rows are sorted by order, so a prefix has all lower orders
    if module.use_gate_act:
        return _gated(y, gate, edges)[:, :rows]
    gated = module.use_sep_s2_act
    grid = module.SO3_grid[whole.lmax][whole.mmax]
    to_grid, from_grid = grid_matrices(grid, whole, y.dtype, gated, edges)
    return s2_activation(y, gate.contiguous() if gated else None, to_grid, from_grid[:rows])


def _gated(y: Tensor, gate: Tensor, edges: Edges) -> Tensor:
    """SiLU on degree 0; on all other degrees a sigmoid gate per degree and channel."""
    lay = edges.layout
    degree = index([degree - 1 for degree, _ in lay.rows[1:]], y)
    gates = torch.sigmoid(gate).view(len(y), lay.lmax, -1)
    return torch.cat([silu(y[:, :1]), y[:, 1:] * gates[:, degree]], dim=1)


def grid_matrices(
    grid: nn.Module, lay: Layout | None, dtype: torch.dtype, gated: bool, edges: Edges | None
) -> tuple[Tensor, Tensor]:
    """Matrices to the grid, (P, R), and back, (R, P).

    Coefficients are ordered as in the layout; without a layout, by degree. The matrices are the
    same in all layers and are kept in ``edges``. With ``gated`` the row of degree 0 on the way back
    is zero.
    """

    def make() -> tuple[Tensor, Tensor]:
        to_grid, from_grid = grid.to_grid_mat.flatten(0, 1), grid.from_grid_mat.flatten(0, 1)
        if lay is not None:
            rows = index(lay.by_degree, to_grid)
            to_grid, from_grid = to_grid[:, rows], from_grid[:, rows]
        back = torch.empty(from_grid.shape[::-1], dtype=dtype, device=from_grid.device)
        back.copy_(from_grid.t())  # a copy, because a row of it is overwritten
        if gated:
            back[0] = 0
        return to_grid.to(dtype).contiguous(), back

    return make() if edges is None else edges.once(("grid", lay, dtype, gated), make)


def _second_convolution(
    module: SO2EquivariantGraphAttention, y: Tensor, attention: Tensor, edges: Edges,
    inputs: Layout, kept: Layout, num_nodes: int,
) -> Tensor:  # fmt: skip
    """(N, K', V): second convolution, weighted by attention, rotated back, summed over edges."""
    convolution: SO2_Convolution = module.so2_conv_2
    channels, hidden = convolution.m_output_channels, y.shape[2]
    kept_rows = [
        _of_degrees(weight, order, edges.layout, kept, channels).to(y.dtype)
        for order, weight in zip(kept.orders, order_weights(convolution))
    ]
    bias = _of_degrees(convolution.fc_m0.bias, 0, edges.layout, kept, channels).to(y.dtype)
    blocks = (inputs.blocks[order] for order in kept.orders)
    columns = [slice(block.start * hidden, block.stop * hidden) for block in blocks]
    ends = edges.ends(y.dtype, kept)
    out = sum_messages(y.flatten(1), attention, ends, num_nodes, columns, kept_rows, bias)
    return _rescaled(out, kept)


def _of_degrees(weight: Tensor, order: int, whole: Layout, kept: Layout, channels: int) -> Tensor:
    """The outputs of the kept degrees; the weights have those of all degrees order ... L."""
    degrees = kept.of_order(order)
    if degrees == whole.of_order(order):
        return weight
    rows = slice((degrees[0] - order) * channels, (degrees[-1] + 1 - order) * channels)
    return weight[rows] if order == 0 else torch.cat([half[rows] for half in weight.chunk(2)])


def _rescaled(x: Tensor, lay: Layout) -> Tensor:
    """(N, K', V) times :attr:`Layout.rescale`."""
    if max(lay.rescale) == 1:
        return x
    return x * constant(tuple(lay.rescale), x.dtype, x.device)[:, None]


def edge_degree(module: EdgeDegreeEmbedding, edges: Edges, num_nodes: int) -> Tensor:
    """The edge-degree embedding, which is part of the first node embedding, (N, K, C)."""
    radial = Radial(module.rad_func, module)
    hidden, last = radial_hidden(radial, edges), radial.last
    dtype = compute_dtype(hidden)
    ends = edges.ends(dtype)
    ends = ends._replace(frames=ends.frames[:, : edges.layout.lmax + 1])
    out = sum_messages(
        hidden.to(dtype),
        None,
        ends,
        num_nodes,
        [slice(0, hidden.shape[1])],
        [last.weight.to(dtype)],
        last.bias.to(dtype),
    )
    return _rescaled(out, edges.layout) / module.rescale_factor
