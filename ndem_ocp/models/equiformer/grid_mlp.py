"""The feed-forward network on the sphere, with its gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from ndem_ocp.models.equiformer.autograd import chunks, without_autocast
from ndem_ocp.models.equiformer.linear import by_coefficient, by_degree

_silu_backward = torch.ops.aten.silu_backward


class GridWeights(NamedTuple):
    """The linear maps of the feed-forward network; upstream's names are in ``block.py``."""

    first: Tensor  # (L + 1, H', C) for each degree
    bias: Tensor  # (H',) of degree 0
    before: Tensor | None  # (H, H') on the grid, before the first nonlinearity
    middle: Tensor | None  # (H, H) on the grid, between two nonlinearities
    after: Tensor | None  # (H', H) on the grid, after the last one
    last: Tensor  # (L + 1, O, H')
    last_bias: Tensor  # (O,)


def grid_mlp(
    x: Tensor, gate: Tensor | None, weights: GridWeights, to_grid: Tensor, from_grid: Tensor
) -> Tensor:
    """The feed-forward network on the sphere.

    u = first x + bias;  v = before (to_grid u);  v = silu(v);  v = silu(middle v);
    out = last (from_grid (after v)) + last_bias; with ``gate``, it replaces degree 0 before
    ``last``. Maps that are None are left out.

    Linear maps of channels commute with the transform to the grid. So ``before`` and ``after`` are
    multiplied with ``first`` and ``last``, and act on K coefficients instead of P points.

    Args:
        x: (N, K, C)
        gate: (N, H') or None
        weights: all of one dtype.
        to_grid: (P, K)
        from_grid: (K, P); with a gate, its first row is zero

    Returns:
        (N, K, O)
    """
    return _GridMLP.apply(x, gate, *weights, to_grid, from_grid)


class _GridMLP(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx, x, gate, *arguments):
        *weights, to_grid, from_grid = arguments
        weights = GridWeights(*weights)
        first, bias = _first(weights)
        last = _last(weights, gate is not None)
        ctx.save_for_backward(x, gate, *weights, to_grid, from_grid, first, bias, last)
        out = x.new_empty(len(x), x.shape[1], last.shape[1])
        for chunk in chunks(len(x), x, len(to_grid) * len(bias), grid=True):
            grid = silu(_to_grid(x[chunk].transpose(0, 1), first, bias, to_grid), inplace=True)
            if weights.middle is not None:
                grid = silu(_pointwise(grid, weights.middle), inplace=True)
            result = _from_grid(grid, gate, chunk, from_grid)
            torch.bmm(result, last.transpose(1, 2), out=out[chunk].transpose(0, 1))
        out[:, 0] += weights.last_bias
        return out

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, g):
        x, gate, *weights, to_grid, from_grid, first, bias, last = ctx.saved_tensors
        weights = GridWeights(*weights)
        middle, hidden = weights.middle, len(bias)
        need = GridWeights(*ctx.needs_input_grad[2:9])
        d_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        d_gate = None if gate is None else torch.empty_like(gate)
        train_first = need.first or need.bias or need.before
        d_first, d_bias, d_middle, d_last = (
            torch.zeros_like(like) if needed else None
            for needed, like in (
                (train_first, first),
                (train_first, bias),
                (need.middle, middle),
                (need.last or need.after, last),
            )
        )
        for chunk in chunks(len(x), x, 4 * len(to_grid) * hidden, grid=True):
            rows, g_rows = x[chunk].transpose(0, 1), g[chunk].transpose(0, 1)
            one = _to_grid(rows, first, bias, to_grid)
            active = silu(one)
            two = None if middle is None else _pointwise(active, middle)
            result = _from_grid(active if two is None else silu(two), gate, chunk, from_grid)
            if d_last is not None:
                d_last.baddbmm_(g_rows.transpose(1, 2), result)
            d_result = torch.bmm(g_rows, last)
            if d_gate is not None:
                d_gate[chunk] = d_result[0]
            d_grid = from_grid.t() @ d_result.flatten(1)
            if two is not None:
                d_two = _silu_backward(d_grid, two).view(-1, hidden)
                if d_middle is not None:
                    d_middle.addmm_(d_two.t(), active.view(-1, hidden))
                d_grid = (d_two @ middle).view_as(one)
            d_rows = to_grid.t() @ _silu_backward(d_grid, one)
            d_rows = d_rows.view(x.shape[1], -1, hidden)
            if d_first is not None:
                d_first.baddbmm_(d_rows.transpose(1, 2), rows)
                d_bias += d_rows[0].sum(0)
            if d_x is not None:
                torch.bmm(d_rows, first, out=d_x[chunk].transpose(0, 1))
        d_last_bias = g[:, 0].sum(0) if need.last_bias else None
        outer = _first_gradients(weights, d_first, d_bias)
        inner = _last_gradients(weights, d_last, gate is not None)
        return d_x, d_gate, *outer, d_middle, *inner, d_last_bias, None, None


def _first(weights: GridWeights) -> tuple[Tensor, Tensor]:
    """``before first`` for each coefficient, (K, H, C), and ``before bias``, (H,)."""
    first, bias = weights.first, weights.bias
    if weights.before is not None:
        first, bias = torch.bmm(_each(weights.before, first), first), weights.before @ bias
    return by_coefficient(first, (0, len(first))), bias


def _first_gradients(
    weights: GridWeights, d_first: Tensor | None, d_bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``first``, ``bias`` and ``before``, from those of the result of _first."""
    if d_first is None or d_bias is None:
        return None, None, None
    first, before = weights.first, weights.before
    each = by_degree(d_first, len(first), (0, len(first)))
    if before is None:
        return each, d_bias, None
    d_before = torch.bmm(each, first.transpose(1, 2)).sum(0).addr_(d_bias, weights.bias)
    return torch.bmm(_each(before.t(), first), each), before.t() @ d_bias, d_before


def _last(weights: GridWeights, gated: bool) -> Tensor:
    """``last after`` for each coefficient, (K, O, H); with a gate, only ``last`` for degree 0."""
    last = weights.last
    if weights.after is not None:
        last = torch.bmm(last, _each(weights.after, last))
        if gated:
            last[0] = weights.last[0]
    return by_coefficient(last, (0, len(last)))


def _last_gradients(
    weights: GridWeights, d_last: Tensor | None, gated: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``after`` and ``last``, from that of the result of _last."""
    if d_last is None:
        return None, None
    last, after = weights.last, weights.after
    each = by_degree(d_last, len(last), (0, len(last)))
    if after is None:
        return None, each
    found = torch.bmm(each, _each(after.t(), last))
    if gated:
        found[0] = each[0]
    first = 1 if gated else 0
    return torch.bmm(last[first:].transpose(1, 2), each[first:]).sum(0), found


def _each(matrix: Tensor, like: Tensor) -> Tensor:
    """The same matrix for each degree of ``like``, without a copy."""
    return matrix.expand(len(like), -1, -1)


def _to_grid(rows: Tensor, first: Tensor, bias: Tensor, to_grid: Tensor) -> Tensor:
    """(K, n, C) -> (P, n * H)."""
    inner = torch.bmm(rows, first.transpose(1, 2))
    inner[0] += bias
    return to_grid @ inner.flatten(1)


def _pointwise(grid: Tensor, weight: Tensor) -> Tensor:
    """A linear map (H, H) of the channels of (P, n * H)."""
    return (grid.view(-1, len(weight)) @ weight.t()).view(len(grid), -1)


def _from_grid(grid: Tensor, gate: Tensor | None, chunk: slice, from_grid: Tensor) -> Tensor:
    """(P, n * H) -> (K, n, H); degree 0 from the gate, if there is one."""
    count = chunk.stop - chunk.start
    result = (from_grid @ grid).view(len(from_grid), count, -1)
    if gate is not None:
        result[0] = gate[chunk]
    return result
