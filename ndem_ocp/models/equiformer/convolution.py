"""SO(2) convolutions of EquiformerV2 between nodes and edges, with their gradients.

    message        y = W (r o D [x_source, x_target])      nodes -> edges, first convolution
    sum_messages   x_i = sum_(edges to i) D^T a o (W y)     edges -> nodes, second convolution

D are the Wigner matrices of the edges, r radial weights, a attention weights, W one matrix for each
order m, o the elementwise product. For the gradient nothing as large as a rotated message is
stored: computing rotations and radial weights again is cheaper than writing and reading them.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ndem_ocp.models.equiformer import kernels
from ndem_ocp.models.equiformer.autograd import chunks, gradient_buffer, without_autocast
from ndem_ocp.models.equiformer.layout import Layout
from ndem_ocp.models.equiformer.messages import (
    Ends,
    add_to_targets,
    by_node,
    message_gradients,
    sums_kernel_agrees,
    weighted_messages,
)
from ndem_ocp.models.equiformer.orders import map_of


class RadialWeights(NamedTuple):
    """The last layer of a radial function, r = hidden weight^T + bias."""

    hidden: Tensor  # (E, h)
    weight: Tensor  # (Q * 2C, h)
    bias: Tensor  # (Q * 2C,)


def message(
    x: Tensor, radial: RadialWeights, ends: Ends, layout: Layout, shared: list[slice],
    weights: list[Tensor], bias: Tensor, invariants: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """First convolution.

    Args:
        x: (N, K, C) node features.
        radial: gives weights for 2C channels of Q (degree, order) pairs.
        ends: E edges.
        layout: of the coefficients on edges.
        shared: for each order, the Q pairs whose weights apply to its degrees (both +m and -m).
        weights: for each order, those of :func:`map_of` to H channels of its rows; order 0 has X
            additional outputs before them.
        bias: (X + rows of m = 0 * H,)
        invariants: X.

    Returns:
        (E, R, H) edge coefficients and (E, X).
    """
    where = (ends, layout, tuple(shared))
    fused = _kernel_agrees(x, radial, where, weights, bias, invariants)
    where = where if fused else (ends._replace(by_node=None), *where[1:])
    return _Message.apply(x, *radial, bias, where, invariants, *weights)


class _Message(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx, x, hidden, weight, radial_bias, bias, where, invariants, *weights):
        ends, layout, _ = where
        ctx.save_for_backward(x, hidden, weight, radial_bias)
        ctx.where = where
        edges, rows = len(ends.source), len(layout.rows)
        scalars = len(bias) - invariants
        heads = scalars // layout.blocks[0].stop
        out, more = x.new_empty(edges, rows * heads), x.new_empty(edges, invariants)
        wide = 2 * x.shape[2]
        first, *rest = ctx.maps = list(
            map(map_of, layout.orders, weights, ctx.needs_input_grad[7:])
        )
        for chunk in chunks(edges, x, x.shape[1] * wide):
            radial = torch.addmm(radial_bias, hidden[chunk], weight.t())
            flat = weighted_messages(x, radial, chunk, where)[0].flatten(1)
            zero = x.new_empty(len(flat), len(bias))
            first.forward(flat[:, : layout.blocks[0].stop * wide], zero, bias)
            more[chunk], out[chunk, :scalars] = zero.split([invariants, scalars], dim=1)
            for block, part in zip(layout.blocks[1:], rest):
                outer = out[chunk, block.start * heads : block.stop * heads]
                part.forward(flat[:, block.start * wide : block.stop * wide], outer)
        return out.view(edges, rows, heads), more

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, g, g_more):
        x, hidden, weight, radial_bias = ctx.saved_tensors
        layout, maps = ctx.where[1], ctx.maps
        edges, heads, wide = len(g), g.shape[2], 2 * x.shape[2]
        g = g.flatten(1)
        need = ctx.needs_input_grad
        d_x = gradient_buffer(ctx, 0, x)
        d_hidden = torch.empty_like(hidden) if need[1] else None
        d_weight, d_radial_bias, d_bias = None, None, None
        if need[2]:
            d_weight, d_radial_bias = torch.zeros_like(weight), torch.zeros_like(radial_bias)
        if need[4]:
            d_bias = torch.cat([g_more.sum(0), g[:, : layout.blocks[0].stop * heads].sum(0)])
        for chunk in chunks(edges, x, x.shape[1] * wide):
            radial = torch.addmm(radial_bias, hidden[chunk], weight.t())
            weighted, rotated = weighted_messages(x, radial, chunk, ctx.where, keep=True)
            flat, back = weighted.flatten(1), torch.empty_like(weighted).flatten(1)
            for block, part in zip(layout.blocks, maps):
                inner = slice(block.start * wide, block.stop * wide)
                outer = g[chunk, block.start * heads : block.stop * heads]
                if block.start == 0:
                    outer = torch.cat([g_more[chunk], outer], dim=1)
                part.backward(outer, flat[:, inner], back[:, inner])
            back = back.view_as(weighted)
            d_radial = message_gradients(back, rotated, x, radial, chunk, ctx.where, d_x)
            if d_hidden is not None:
                torch.mm(d_radial, weight, out=d_hidden[chunk])
            if d_weight is not None:
                d_weight.addmm_(d_radial.t(), hidden[chunk])
                d_radial_bias += d_radial.sum(0)
        d_weights = [part.gradient() for part in maps]
        return d_x, d_hidden, d_weight, d_radial_bias, d_bias, None, None, *d_weights


def sum_messages(
    y: Tensor, attention: Tensor | None, ends: Ends, num_nodes: int, inputs: list[slice],
    weights: list[Tensor], bias: Tensor,
) -> Tensor:  # fmt: skip
    """Second convolution and the sum over the edges of each target.

    Args:
        y: (E, I) flat edge coefficients.
        attention: (E, heads) weights; None: all weights are one.
        ends: E edges; their frames (E, R, K') have a row for each output row of the weights.
        num_nodes: N.
        inputs: for each order, the columns of y that its weights multiply.
        weights: those of :func:`map_of` to V channels, one for each order from 0.
        bias: of order 0.

    Returns:
        (N, K', V)
    """
    if not sums_kernel_agrees(y, ends.by_node):
        ends = ends._replace(by_node=None)
    where = (ends, num_nodes, tuple(inputs))
    return _SumMessages.apply(y, attention, bias, where, *weights)


class _SumMessages(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx, y, attention, bias, where, *weights):
        ends, num_nodes, inputs = where
        rows, width = ends.frames.shape[1], sum(map(len, weights))
        out = y.new_zeros(num_nodes, ends.frames.shape[2], width // rows)
        # Values before attention are stored: recomputing their matrix product would cost more.
        keep = attention is not None and ctx.needs_input_grad[1]
        kept = y.new_empty(len(y), width) if keep else None
        first, *rest = ctx.maps = list(
            map(map_of, range(len(weights)), weights, ctx.needs_input_grad[4:])
        )
        outputs = _outputs(weights)
        for chunk in chunks(len(y), y, width + out.shape[1] * out.shape[2]):
            n = chunk.stop - chunk.start
            value = kept[chunk] if keep else y.new_empty(n, width)
            first.forward(y[chunk, inputs[0]], value[:, outputs[0]], bias)
            for part, columns, outer in zip(rest, inputs[1:], outputs[1:]):
                part.forward(y[chunk, columns], value[:, outer])
            value = _attended(value.view(n, rows, -1), attention, chunk)
            back = torch.bmm(ends.frames[chunk].transpose(1, 2), value)
            add_to_targets(out, back, ends, chunk)
        ctx.save_for_backward(y, attention, kept, *weights)
        ctx.where = where
        return out

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, g):
        y, attention, kept, *weights = ctx.saved_tensors
        ends, _, inputs = ctx.where
        need = ctx.needs_input_grad
        width, outputs = sum(map(len, weights)), _outputs(weights)
        d_y = torch.empty_like(y) if need[0] else None
        if d_y is not None and sum(c.stop - c.start for c in inputs) < y.shape[1]:
            d_y.zero_()
        d_attention = torch.empty_like(attention) if kept is not None else None
        d_bias = y.new_zeros(len(weights[0])) if need[2] else None
        maps = ctx.maps
        for chunk in chunks(len(y), y, width + g.shape[1] * g.shape[2]):
            n = chunk.stop - chunk.start
            value = torch.bmm(ends.frames[chunk], g[ends.target[chunk]])
            if d_attention is not None:
                product = (kept[chunk].view_as(value) * value).sum(1)
                d_attention[chunk] = product.view(n, attention.shape[1], -1).sum(2)
            value = _attended(value, attention, chunk).view(n, width)
            for part, columns, outer in zip(maps, inputs, outputs):
                d_part = None if d_y is None else d_y[chunk, columns]
                part.backward(value[:, outer], y[chunk, columns], d_part)
            if d_bias is not None:
                d_bias += value[:, outputs[0]].sum(0)
        return d_y, d_attention, d_bias, None, *(part.gradient() for part in maps)


def _outputs(weights: tuple[Tensor, ...]) -> list[slice]:
    """The columns of each order's outputs."""
    ends = list(accumulate(map(len, weights), initial=0))
    return list(map(slice, ends, ends[1:]))


def _attended(value: Tensor, attention: Tensor | None, chunk: slice) -> Tensor:
    """a o value, (n, rows, V); each head weights its own V / heads channels."""
    if attention is None:
        return value
    heads = attention.shape[1]
    weights = attention[chunk].repeat_interleave(value.shape[2] // heads, dim=1)
    return value * weights[:, None]


def _kernel_agrees(
    x: Tensor, radial: RadialWeights, where: Any, weights: list[Tensor], bias: Tensor,
    invariants: int,
) -> bool:  # fmt: skip
    """Whether the kernels agree with torch's code on a few edges of this batch."""
    ends, layout, shared = where
    if ends.by_node is None or len(ends.source) == 0:
        return False

    def compare() -> list[tuple[Tensor, Tensor]]:
        few = slice(0, min(40, len(ends.source)))
        nodes, places = torch.unique(
            torch.stack([ends.source[few], ends.target[few]]), return_inverse=True
        )
        some = Ends(*places, ends.frames[few].clone())
        fused = some._replace(by_node=by_node(*places, len(nodes)))
        fixed = [each.detach().clone() for each in (radial.weight, radial.bias, bias, *weights)]

        def run(which: Ends) -> Any:
            def call(x: Tensor, hidden: Tensor) -> Tensor:
                weight, radial_bias, bias, *weights = fixed
                where = (which, layout, shared)
                return _Message.apply(
                    x, hidden, weight, radial_bias, bias, where, invariants, *weights
                )[0]

            return call

        given = [kernels.wave((len(nodes), *x.shape[1:]), x), radial.hidden[few]]
        return kernels.both(run(fused), run(some), given)

    parts = tuple(
        (part.start, part.stop) for part in shared
    )  # before Python 3.12, no slice is a key
    sizes = (layout, parts, *x.shape[1:], *radial.weight.shape)
    return kernels.agrees("message", x, sizes, compare)
