"""SiLU on the sphere, without storing the grid in memory.

The grid has P points for R coefficients, 17 times as many. A program loads the coefficients of some
columns (pairs of edge and channel), computes a few grid points at a time, and accumulates the
coefficients of the result. Memory traffic per column: R + R' values instead of R + 4 P + R' in the
forward, 2 R + R' instead of about 7 P in the backward.

Columns come first in all products: an H100's fast products need 64 rows, and take the result of one
as the first factor of the next from registers.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from ndem_ocp.models.equiformer.autograd import without_autocast
from ndem_ocp.models.equiformer.kernels import on_device_of


class Tile(NamedTuple):
    """What one program works on at a time."""

    columns: int
    points: int  # of the grid
    warps: int
    stages: int


# At L = 6, M = 3 the backward in float32 needs 80 KB of shared memory and, compiled for compute
# capability 9.0, spills no registers. With twice as many columns and warps it needs 144 KB, which
# consumer cards do not have.
TILE = Tile(64, 32, warps=4, stages=1)

_silu_backward = torch.ops.aten.silu_backward


@triton.jit
def _places(column, count, R: tl.constexpr, H: tl.constexpr, RP: tl.constexpr):
    """Where in a tensor (E, R, H) the R rows of some columns are, (columns, RP)."""
    r = tl.arange(0, RP)
    edge = (column // H).to(tl.int64)
    place = (edge * (R * H) + column % H)[:, None] + (r * H)[None, :]
    return place, (column < count)[:, None] & (r < R)[None, :]


@triton.jit
def _product(a, b, PRODUCTS: tl.constexpr, WIDE: tl.constexpr):
    if WIDE:  # Triton's interpreter cannot multiply bfloat16
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRODUCTS)


@triton.jit(do_not_specialize=["count"])
def _forward(
    x, out, to_grid, from_grid, count,
    R: tl.constexpr, RO: tl.constexpr, H: tl.constexpr, P: tl.constexpr,
    RP: tl.constexpr, COLUMNS: tl.constexpr, POINTS: tl.constexpr, PRODUCTS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    r, p = tl.arange(0, RP), tl.arange(0, POINTS)
    place, inside = _places(column, count, R, H, RP)
    here = tl.load(x + place, mask=inside, other=0.0)
    total = tl.zeros((COLUMNS, RP), dtype=tl.float32)
    for first in range(0, P, POINTS):
        q = first + p
        there = (r < R)[:, None] & (q < P)[None, :]
        to = tl.load(to_grid + q[None, :] * R + r[:, None], mask=there, other=0.0)
        grid = _product(here, to, PRODUCTS, WIDE)
        grid = grid * tl.sigmoid(grid)
        there = (q < P)[:, None] & (r < RO)[None, :]
        back = tl.load(from_grid + r[None, :] * P + q[:, None], mask=there, other=0.0)
        total += _product(grid.to(here.dtype), back, PRODUCTS, WIDE)
    place, inside = _places(column, count, RO, H, RP)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count"])
def _backward(
    x, g, d_x, to_grid, from_grid, count,
    R: tl.constexpr, RO: tl.constexpr, H: tl.constexpr, P: tl.constexpr,
    RP: tl.constexpr, COLUMNS: tl.constexpr, POINTS: tl.constexpr, PRODUCTS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    r, p = tl.arange(0, RP), tl.arange(0, POINTS)
    place, inside = _places(column, count, R, H, RP)
    here = tl.load(x + place, mask=inside, other=0.0)
    place_out, inside_out = _places(column, count, RO, H, RP)
    given = tl.load(g + place_out, mask=inside_out, other=0.0)
    total = tl.zeros((COLUMNS, RP), dtype=tl.float32)
    for first in range(0, P, POINTS):
        q = first + p
        there = (r < R)[:, None] & (q < P)[None, :]
        to = tl.load(to_grid + q[None, :] * R + r[:, None], mask=there, other=0.0)
        there = (r < RO)[:, None] & (q < P)[None, :]
        back = tl.load(from_grid + r[:, None] * P + q[None, :], mask=there, other=0.0)
        grid = _product(here, to, PRODUCTS, WIDE)
        d_grid = _product(given, back, PRODUCTS, WIDE)
        s = tl.sigmoid(grid)
        d_grid = d_grid * s * (1 + grid * (1 - s))
        # loaded again: transposing would move it through shared memory
        there = (q < P)[:, None] & (r < R)[None, :]
        to = tl.load(to_grid + q[:, None] * R + r[None, :], mask=there, other=0.0)
        total += _product(d_grid.to(here.dtype), to, PRODUCTS, WIDE)
    tl.store(d_x + place, total.to(d_x.dtype.element_ty), mask=inside)


def products_of(like: Tensor) -> str:
    """Precision of products, as set in torch; three TF32 products are as accurate as float32."""
    high = torch.get_float32_matmul_precision() != "highest"
    return "tf32" if high or like.dtype != torch.float32 else "tf32x3"


def s2_activation(x: Tensor, gate: Tensor | None, to_grid: Tensor, from_grid: Tensor) -> Tensor:
    """Same as ``grid.s2_activation``."""
    return _S2Activation.apply(x, gate, to_grid, from_grid)


class _S2Activation(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx, x, gate, to_grid, from_grid):
        x, to_grid, from_grid = x.contiguous(), to_grid.contiguous(), from_grid.contiguous()
        (edges, rows, channels), (rows_out, points) = x.shape, from_grid.shape
        ctx.sizes = {
            "R": rows, "RO": rows_out, "H": channels, "P": points,
            "RP": max(16, triton.next_power_of_2(max(rows, rows_out))),
            "COLUMNS": TILE.columns, "POINTS": TILE.points, "PRODUCTS": products_of(x),
            "WIDE": os.environ.get("TRITON_INTERPRET") == "1",
            "num_warps": TILE.warps, "num_stages": TILE.stages,
        }  # fmt: skip
        ctx.save_for_backward(x, gate, to_grid, from_grid)
        out = x.new_empty(edges, rows_out, channels)
        count = edges * channels
        if count:
            programs = (triton.cdiv(count, ctx.sizes["COLUMNS"]),)
            with on_device_of(x):
                _forward[programs](x, out, to_grid, from_grid, count, **ctx.sizes)
        if gate is not None:
            out[:, 0] = silu(gate)
        return out

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, g):
        x, gate, to_grid, from_grid = ctx.saved_tensors
        d_gate = None if gate is None else _silu_backward(g[:, 0].contiguous(), gate)
        d_x = torch.empty_like(x)
        count = len(x) * x.shape[2]
        if count:
            programs = (triton.cdiv(count, ctx.sizes["COLUMNS"]),)
            g = g.contiguous()
            with on_device_of(x):
                _backward[programs](x, g, d_x, to_grid, from_grid, count, **ctx.sizes)
        return d_x, d_gate, None, None
