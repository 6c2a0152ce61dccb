"""Pointwise functions on the sphere: coefficients -> S2 grid -> function -> coefficients.

The grid has a hundred times more values than fit in a cache, and as many as everything else in a
layer. So it is computed in chunks, and computed again for the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from ndem_ocp.models.equiformer import kernels
from ndem_ocp.models.equiformer.autograd import chunks, gradient_buffer, without_autocast

_silu_backward = torch.ops.aten.silu_backward


def s2_activation(x: Tensor, gate: Tensor | None, to_grid: Tensor, from_grid: Tensor) -> Tensor:
    """SiLU on the sphere; with ``gate`` the separable one, silu(gate) for degree 0.

    Args:
        x: (E, R, H)
        gate: (E, H) or None
        to_grid: (P, R), P grid points
        from_grid: (R', P); with a gate, its first row is zero
    """
    if _kernel_agrees(x, gate, to_grid, from_grid):
        from ndem_ocp.models.equiformer.kernels import s2

        return s2.s2_activation(x, gate, to_grid, from_grid)
    return _S2Activation.apply(x, gate, to_grid, from_grid)


def _kernel_agrees(x: Tensor, gate: Tensor | None, to_grid: Tensor, from_grid: Tensor) -> bool:
    def compare() -> list[tuple[Tensor, Tensor]]:
        from ndem_ocp.models.equiformer.kernels import s2

        few = kernels.wave((40, *x.shape[1:]), x)
        gates = None if gate is None else kernels.wave((40, x.shape[2]), x, 1.0)
        arguments = (to_grid.detach().clone(), from_grid.detach().clone())
        given = [each for each in (few, gates) if each is not None]
        return kernels.both(
            lambda *inputs: s2.s2_activation(*_with_gate(inputs), *arguments),
            lambda *inputs: _S2Activation.apply(*_with_gate(inputs), *arguments),
            given,
        )

    sizes = (*x.shape[1:], *from_grid.shape, gate is None)
    return kernels.agrees("S2 activation", x, sizes, compare)


def _with_gate(inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
    return inputs if len(inputs) == 2 else (inputs[0], None)


class _S2Activation(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx, x, gate, to_grid, from_grid):
        ctx.save_for_backward(x, gate, to_grid, from_grid)
        channels = x.shape[2]
        out = x.new_empty(len(x), len(from_grid), channels)
        for chunk in chunks(len(x), x, len(to_grid) * channels, grid=True):
            grid = to_grid @ _by_row(x[chunk])
            result = from_grid @ silu(grid, inplace=True)
            out[chunk] = result.view(len(from_grid), -1, channels).transpose(0, 1)
        if gate is not None:
            out[:, 0] = silu(gate)
        return out

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, g):
        x, gate, to_grid, from_grid = ctx.saved_tensors
        d_x = torch.empty_like(x)
        d_gate = None if gate is None else _silu_backward(g[:, 0].contiguous(), gate)
        for chunk in chunks(len(x), x, 2 * len(to_grid) * x.shape[2], grid=True):
            grid = to_grid @ _by_row(x[chunk])
            d_grid = from_grid.t() @ _by_row(g[chunk])
            d_rows = to_grid.t() @ _silu_backward(d_grid, grid)
            d_x[chunk] = d_rows.view(x.shape[1], -1, x.shape[2]).transpose(0, 1)
        return d_x, d_gate, None, None


def _by_row(x: Tensor) -> Tensor:
    """(n, R, H) -> (R, n * H)."""
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def grid_mlp(
    x: Tensor, gate: Tensor | None, first: Tensor, bias: Tensor, middle: Tensor | None,
    last: Tensor, to_grid: Tensor, from_grid: Tensor,
) -> Tensor:  # fmt: skip
    """The feed-forward network on the sphere.

    u = first x + bias;  v = silu(to_grid u);  v = silu(middle v) if ``middle`` is given;
    out = last (from_grid v); with ``gate``, it replaces degree 0 of from_grid v.

    Linear maps of channels commute with the transform to the grid. So the outer two of upstream's
    three layers on the grid are part of ``first`` and ``last``, on K coefficients instead of P
    points.

    Args:
        x: (N, K, C)
        gate: (N, H) or None
        first: (K, C, H), one matrix for each coefficient
        bias: (H,), for degree 0
        middle: (H, H) or None
        last: (K, H, O)
        to_grid: (P, K)
        from_grid: (K, P); with a gate, its first row is zero

    Returns:
        (N, K, O)
    """
    return _GridMLP.apply(x, gate, first, bias, middle, last, to_grid, from_grid)


class _GridMLP(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx, x, gate, first, bias, middle, last, to_grid, from_grid):
        ctx.save_for_backward(x, gate, first, bias, middle, last, to_grid, from_grid)
        out = x.new_empty(len(x), x.shape[1], last.shape[2])
        for chunk in chunks(len(x), x, len(to_grid) * first.shape[2], grid=True):
            rows = x[chunk].transpose(0, 1)
            grid = silu(_to_grid(rows, first, bias, to_grid), inplace=True)
            if middle is not None:
                grid = silu(_pointwise(grid, middle), inplace=True)
            result = _from_grid(grid, gate, chunk, from_grid, first.shape[2])
            out[chunk] = torch.bmm(result, last).transpose(0, 1)
        return out

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, g):
        x, gate, first, bias, middle, last, to_grid, from_grid = ctx.saved_tensors
        hidden = first.shape[2]
        d_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        d_gate = None if gate is None else torch.empty_like(gate)
        d_first, d_bias, d_middle, d_last = (
            gradient_buffer(ctx, number, like)
            for number, like in ((2, first), (3, bias), (4, middle), (5, last))
        )
        for chunk in chunks(len(x), x, 4 * len(to_grid) * hidden, grid=True):
            rows, g_rows = x[chunk].transpose(0, 1), g[chunk].transpose(0, 1)
            one = _to_grid(rows, first, bias, to_grid)
            active = silu(one)
            two = None if middle is None else _pointwise(active, middle)
            last_grid = active if two is None else silu(two)
            result = _from_grid(last_grid, gate, chunk, from_grid, hidden)
            if d_last is not None:
                d_last.baddbmm_(result.transpose(1, 2), g_rows)
            d_result = torch.bmm(g_rows, last.transpose(1, 2))
            if d_gate is not None:
                d_gate[chunk] = d_result[0]
            d_grid = from_grid.t() @ d_result.flatten(1)
            if two is not None:
                d_two = _silu_backward(d_grid, two).view(-1, hidden)
                if d_middle is not None:
                    d_middle.addmm_(active.view(-1, hidden).t(), d_two)
                d_grid = (d_two @ middle.t()).view_as(one)
            d_rows = to_grid.t() @ _silu_backward(d_grid, one)
            d_rows = d_rows.view(x.shape[1], -1, hidden)
            if d_first is not None:
                d_first.baddbmm_(rows.transpose(1, 2), d_rows)
            if d_bias is not None:
                d_bias += d_rows[0].sum(0)
            if d_x is not None:
                d_x[chunk] = torch.bmm(d_rows, first.transpose(1, 2)).transpose(0, 1)
        return d_x, d_gate, d_first, d_bias, d_middle, d_last, None, None


def _to_grid(rows: Tensor, first: Tensor, bias: Tensor, to_grid: Tensor) -> Tensor:
    """(K, n, C) -> (P, n * H)."""
    inner = torch.bmm(rows, first)
    inner[0] += bias
    return to_grid @ inner.flatten(1)


def _pointwise(grid: Tensor, weight: Tensor) -> Tensor:
    """(P, n * H) times (H, H), on the channels."""
    return (grid.view(-1, len(weight)) @ weight).view(len(grid), -1)


def _from_grid(
    grid: Tensor, gate: Tensor | None, chunk: slice, from_grid: Tensor, hidden: int
) -> Tensor:
    """(P, n * H) -> (K, n, H); degree 0 from the gate, if there is one."""
    result = (from_grid @ grid).view(len(from_grid), -1, hidden)
    if gate is not None:
        result[0] = gate[chunk]
    return result
