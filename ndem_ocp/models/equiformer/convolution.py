"""SO(2) convolutions of EquiformerV2 between nodes and edges, with their gradients.

    message        y = W (r o D [x_source, x_target])      nodes -> edges, first convolution
    sum_messages   x_i = sum_(edges to i) D^T a o (W y)     edges -> nodes, second convolution

D are the Wigner matrices of the edges, r radial weights, a attention weights, W one matrix for each
order m, o the elementwise product. For the gradient nothing as large as a rotated message is
stored: computing rotations and radial weights again is cheaper than writing and reading them.
"""

from __future__ import annotations

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


class Radial(NamedTuple):
    """The last layer of a radial function, r = hidden weight^T + bias."""

    hidden: Tensor  # (E, h)
    weight: Tensor  # (Q * 2C, h)
    bias: Tensor  # (Q * 2C,)


def order_matrix(weight: Tensor) -> Tensor:
    """(2O, I) weights (W_r, W_i) of one order -> (2I, 2O) matrix on rows (x_m, x_-m).

    y_m = W_r x_m - W_i x_-m,  y_-m = W_r x_-m + W_i x_m
    """
    real, imaginary = weight.t().chunk(2, dim=1)
    return torch.cat(
        [torch.cat([real, imaginary], dim=1), torch.cat([-imaginary, real], dim=1)], dim=0
    )


def message(
    x: Tensor, radial: Radial, ends: Ends, layout: Layout, shared: list[slice], mats: list[Tensor],
    extra: Tensor | None, bias: Tensor, extra_bias: Tensor | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """First convolution.

    Args:
        x: (N, K, C) node features.
        radial: gives weights for 2C channels of Q (degree, order) pairs.
        ends: E edges.
        layout: of the coefficients on edges.
        shared: for each order, the Q pairs whose weights apply to its degrees (both +m and -m).
        mats: for each order, (rows * 2C, rows * H).
        extra: (rows of m = 0 * 2C, X), for additional invariant outputs.
        bias: (rows of m = 0 * H,)
        extra_bias: (X,)

    Returns:
        (E, R, H) edge coefficients and (E, X) or None.
    """
    where = (ends, layout, tuple(shared))
    fused = _kernel_agrees(x, radial, where, mats, bias)
    where = where if fused else (ends._replace(by_node=None), *where[1:])
    out, more = _Message.apply(x, *radial, extra, extra_bias, bias, where, *mats)
    return out, more if extra is not None else None


class _Message(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx, x, hidden, weight, radial_bias, extra, extra_bias, bias, where, *mats):
        ends, layout, _ = where
        ctx.save_for_backward(x, hidden, weight, radial_bias, extra, *mats)
        ctx.where = where
        edges, rows = len(ends.source), len(layout.rows)
        heads = mats[0].shape[1] // (layout.blocks[0].stop)
        out = x.new_empty(edges, rows * heads)
        more = x.new_empty(edges, 0 if extra is None else extra.shape[1])
        wide = 2 * x.shape[2]
        for chunk in chunks(edges, x, x.shape[1] * wide):
            radial = torch.addmm(radial_bias, hidden[chunk], weight.t())
            flat = weighted_messages(x, radial, chunk, where)[0].flatten(1)
            for block, matrix in zip(layout.blocks, mats):
                columns = slice(block.start * heads, block.stop * heads)
                left = flat[:, block.start * wide : block.stop * wide]
                torch.mm(left, matrix, out=out[chunk, columns])
            if extra is not None:
                left = flat[:, : layout.blocks[0].stop * wide]
                torch.addmm(extra_bias, left, extra, out=more[chunk])
        out[:, : len(bias)] += bias
        return out.view(edges, rows, heads), more

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, g, g_more):
        x, hidden, weight, radial_bias, extra, *mats = ctx.saved_tensors
        layout = ctx.where[1]
        edges, heads, wide = len(g), g.shape[2], 2 * x.shape[2]
        g = g.flatten(1)
        need = ctx.needs_input_grad
        d_x = gradient_buffer(ctx, 0, x)
        d_hidden = torch.empty_like(hidden) if need[1] else None
        d_weight, d_radial_bias = (
            gradient_buffer(ctx, 2, weight),
            gradient_buffer(ctx, 3, radial_bias),
        )
        d_extra = gradient_buffer(ctx, 4, extra)
        d_mats = [gradient_buffer(ctx, 8 + number, matrix) for number, matrix in enumerate(mats)]
        for chunk in chunks(edges, x, x.shape[1] * wide):
            radial = torch.addmm(radial_bias, hidden[chunk], weight.t())
            weighted, rotated = weighted_messages(x, radial, chunk, ctx.where, keep=True)
            flat, back = weighted.flatten(1), torch.empty_like(weighted).flatten(1)
            for number, (block, matrix) in enumerate(zip(layout.blocks, mats)):
                inner = slice(block.start * wide, block.stop * wide)
                outer = g[chunk, block.start * heads : block.stop * heads]
                torch.mm(outer, matrix.t(), out=back[:, inner])
                if d_mats[number] is not None:
                    d_mats[number].addmm_(flat[:, inner].t(), outer)
            if extra is not None:
                inner = slice(0, layout.blocks[0].stop * wide)
                back[:, inner].addmm_(g_more[chunk], extra.t())
                if d_extra is not None:
                    d_extra.addmm_(flat[:, inner].t(), g_more[chunk])
            back = back.view_as(weighted)
            d_radial = message_gradients(back, rotated, x, radial, chunk, ctx.where, d_x)
            if d_hidden is not None:
                torch.mm(d_radial, weight, out=d_hidden[chunk])
            if d_weight is not None:
                d_weight.addmm_(d_radial.t(), hidden[chunk])
                d_radial_bias += d_radial.sum(0)
        d_bias = g[:, : layout.blocks[0].stop * heads].sum(0) if need[6] else None
        d_extra_bias = g_more.sum(0) if need[5] and extra is not None else None
        return (
            d_x, d_hidden, d_weight, d_radial_bias, d_extra, d_extra_bias, d_bias, None, *d_mats
        )  # fmt: skip


def sum_messages(
    y: Tensor, attention: Tensor | None, ends: Ends, num_nodes: int, inputs: list[slice],
    mats: list[Tensor], bias: Tensor,
) -> Tensor:  # fmt: skip
    """Second convolution and the sum over the edges of each target.

    Args:
        y: (E, I) flat edge coefficients.
        attention: (E, heads) weights; None: all weights are one.
        ends: E edges; their frames (E, R, K') have a row for each output row of the matrices.
        num_nodes: N.
        inputs: for each matrix, the columns of y that it multiplies.
        mats: (inputs, rows * V), one for each order.
        bias: of the first matrix.

    Returns:
        (N, K', V)
    """
    if not sums_kernel_agrees(y, ends.by_node):
        ends = ends._replace(by_node=None)
    where = (ends, num_nodes, tuple(inputs))
    return _SumMessages.apply(y, attention, bias, where, *mats)


class _SumMessages(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx, y, attention, bias, where, *mats):
        ends, num_nodes, inputs = where
        rows, width = ends.frames.shape[1], sum(matrix.shape[1] for matrix in mats)
        out = y.new_zeros(num_nodes, ends.frames.shape[2], width // rows)
        # Values before attention are stored: recomputing their matrix product would cost more.
        keep = attention is not None and ctx.needs_input_grad[1]
        kept = y.new_empty(len(y), width) if keep else None
        for chunk in chunks(len(y), y, width + out.shape[1] * out.shape[2]):
            n = chunk.stop - chunk.start
            value = kept[chunk] if keep else y.new_empty(n, width)
            start = 0
            for columns, matrix in zip(inputs, mats):
                stop = start + matrix.shape[1]
                torch.mm(y[chunk, columns], matrix, out=value[:, start:stop])
                start = stop
            value[:, : len(bias)] += bias
            value = _attended(value.view(n, rows, -1), attention, chunk)
            back = torch.bmm(ends.frames[chunk].transpose(1, 2), value)
            add_to_targets(out, back, ends, chunk)
        ctx.save_for_backward(y, attention, bias, kept, *mats)
        ctx.where = where
        return out

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, g):
        y, attention, bias, kept, *mats = ctx.saved_tensors
        ends, _, inputs = ctx.where
        width = sum(matrix.shape[1] for matrix in mats)
        d_y = torch.empty_like(y) if ctx.needs_input_grad[0] else None
        if d_y is not None and sum(c.stop - c.start for c in inputs) < y.shape[1]:
            d_y.zero_()
        d_attention = torch.empty_like(attention) if kept is not None else None
        d_bias = gradient_buffer(ctx, 2, bias)
        d_mats = [gradient_buffer(ctx, 4 + number, matrix) for number, matrix in enumerate(mats)]
        for chunk in chunks(len(y), y, width + g.shape[1] * g.shape[2]):
            n = chunk.stop - chunk.start
            value = torch.bmm(ends.frames[chunk], g[ends.target[chunk]])
            if d_attention is not None:
                product = (kept[chunk].view_as(value) * value).sum(1)
                d_attention[chunk] = product.view(n, attention.shape[1], -1).sum(2)
            value = _attended(value, attention, chunk).view(n, width)
            start = 0
            for number, (columns, matrix) in enumerate(zip(inputs, mats)):
                stop = start + matrix.shape[1]
                if d_y is not None:
                    torch.mm(value[:, start:stop], matrix.t(), out=d_y[chunk, columns])
                if d_mats[number] is not None:
                    d_mats[number].addmm_(y[chunk, columns].t(), value[:, start:stop])
                start = stop
            if d_bias is not None:
                d_bias += value[:, : len(bias)].sum(0)
        return d_y, d_attention, d_bias, None, *d_mats


def _attended(value: Tensor, attention: Tensor | None, chunk: slice) -> Tensor:
    """a o value, (n, rows, V); each head weights its own V / heads channels."""
    if attention is None:
        return value
    heads = attention.shape[1]
    weights = attention[chunk].repeat_interleave(value.shape[2] // heads, dim=1)
    return value * weights[:, None]


def _kernel_agrees(x: Tensor, radial: Radial, where: Any, mats: list[Tensor], bias: Tensor) -> bool:
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
        fixed = [each.detach().clone() for each in (radial.weight, radial.bias, bias, *mats)]

        def run(which: Ends) -> Any:
            def call(x: Tensor, hidden: Tensor) -> Tensor:
                weight, radial_bias, bias, *mats = fixed
                where = (which, layout, shared)
                return _Message.apply(
                    x, hidden, weight, radial_bias, None, None, bias, where, *mats
                )[0]

            return call

        given = [kernels.wave((len(nodes), *x.shape[1:]), x), radial.hidden[few]]
        return kernels.both(run(fused), run(some), given)

    parts = tuple(
        (part.start, part.stop) for part in shared
    )  # before Python 3.12, no slice is a key
    sizes = (layout, parts, *x.shape[1:], *radial.weight.shape)
    return kernels.agrees("message", x, sizes, compare)
