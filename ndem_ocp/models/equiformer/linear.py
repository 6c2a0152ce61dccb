"""Linear maps of node coefficients with one matrix per degree (upstream's SO3_LinearV2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ndem_ocp.models.equiformer.autograd import without_autocast
from ndem_ocp.models.equiformer.constants import index

Degrees = tuple[int, int]  # first, last + 1


def linear_by_degree(x: Tensor, weight: Tensor, bias: Tensor | None, degrees: Degrees) -> Tensor:
    """y_(l, m) = W_l x_(l, m), plus a bias for degree 0.

    Args:
        x: (N, K, C) the coefficients of these degrees.
        weight: (L + 1, O, C)
        bias: (O,); only used if the degrees include 0.
        degrees: of x.

    Returns:
        (N, K, O)
    """
    return _LinearByDegree.apply(x, weight, bias if degrees[0] == 0 else None, degrees)


class _LinearByDegree(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx, x, weight, bias, degrees):
        ctx.save_for_backward(x, weight)
        ctx.degrees = degrees
        out = x.new_empty(*x.shape[:2], weight.shape[1])
        multiply(x, by_coefficient(weight, degrees).transpose(1, 2), out)
        if bias is not None:
            out[:, 0] += bias
        return out

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        need = ctx.needs_input_grad
        d_x = d_weight = None
        if need[0]:
            d_x = torch.empty_like(x)
            multiply(g, by_coefficient(weight, ctx.degrees), d_x)
        if need[1]:
            each = torch.bmm(g.permute(1, 2, 0), x.transpose(0, 1))
            d_weight = by_degree(each, len(weight), ctx.degrees)
        return d_x, d_weight, g[:, 0].sum(0) if need[2] else None, None


def multiply(x: Tensor, matrices: Tensor, out: Tensor) -> None:
    """(N, K, C) times (K, C, O), for each coefficient its matrix, into ``out`` (N, K, O)."""
    torch.bmm(x.transpose(0, 1), matrices, out=out.transpose(0, 1))


def by_coefficient(weight: Tensor, degrees: Degrees, first: int = 0) -> Tensor:
    """One entry per degree from ``first`` -> (K, ...), one per coefficient of these degrees."""
    every = [degree - first for degree in range(*degrees) for _ in range(2 * degree + 1)]
    return weight.index_select(0, index(every, weight))


def by_degree(values: Tensor, count: int, degrees: Degrees, first: int = 0) -> Tensor:
    """The gradient of :func:`by_coefficient`: (K, ...) -> (count, ...), sums over each degree.

    In a fixed order on every device, unlike index_add_.
    """
    every = range(first, first + count)
    lengths = [2 * n + 1 if degrees[0] <= n < degrees[1] else 0 for n in every]
    return torch.segment_reduce(
        values, "sum", lengths=index(lengths, values), initial=0, unsafe=True
    )
