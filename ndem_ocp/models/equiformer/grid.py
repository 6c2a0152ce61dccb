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
from ndem_ocp.models.equiformer.autograd import chunks, without_autocast

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
