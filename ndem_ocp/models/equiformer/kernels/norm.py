"""Layer norm of node features: one kernel forward; one kernel and one sum backward."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ndem_ocp.models.equiformer.autograd import without_autocast
from ndem_ocp.models.equiformer.kernels import on_device_of

PROGRAMS = 256  # of the backward at most: about two for each multiprocessor of an H100
# Of a node, per warp. For compute capability 9.0, the backward then takes 128 registers and spills
# none, at L = 4 and 6 with 128 channels.
VALUES = 512


@triton.jit
def _degrees(r, L: tl.constexpr):
    """For each coefficient above degree 0 its degree, minus one."""
    found = r * 0
    for degree in tl.static_range(2, L + 1):
        found += (r + 1 >= degree * degree).to(tl.int32)
    return found


@triton.jit
def _forward(
    x, out, moments, first, bias, weight, share, eps,
    L: tl.constexpr, C: tl.constexpr, RP: tl.constexpr, CP: tl.constexpr, AFFINE: tl.constexpr,
):  # fmt: skip
    R: tl.constexpr = (L + 1) * (L + 1) - 1
    node = tl.program_id(0).to(tl.int64)
    r, c = tl.arange(0, RP), tl.arange(0, CP)
    inside, there = c < C, (r < R)[:, None] & (c < C)[None, :]
    scalar = node * ((R + 1) * C) + c
    others = node * ((R + 1) * C) + (r + 1)[:, None] * C + c[None, :]

    value = tl.load(x + scalar, mask=inside, other=0.0)
    mean = tl.sum(value, axis=0) / C
    value = tl.where(inside, value - mean, 0.0)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / C + eps)
    value *= scale
    if AFFINE:
        value *= tl.load(first + c, mask=inside, other=0.0)
        value += tl.load(bias + c, mask=inside, other=0.0)
    tl.store(out + scalar, value, mask=inside)

    values = tl.load(x + others, mask=there, other=0.0)
    squares = tl.sum(values * values, axis=1) * tl.load(share + r, mask=r < R, other=0.0)
    scales = tl.rsqrt(tl.sum(squares, axis=0) / C + eps)
    values *= scales
    if AFFINE:
        place = _degrees(r, L)[:, None] * C + c[None, :]
        values *= tl.load(weight + place, mask=there, other=0.0)
    tl.store(out + others, values, mask=there)

    tl.store(moments + node * 3, mean)
    tl.store(moments + node * 3 + 1, scale)
    tl.store(moments + node * 3 + 2, scales)


@triton.jit(do_not_specialize=["count"])
def _backward(
    x, g, d_x, parts, moments, first, weight, share, count,
    L: tl.constexpr, C: tl.constexpr, RP: tl.constexpr, CP: tl.constexpr, AFFINE: tl.constexpr,
):  # fmt: skip
    """``parts``: for each program its nodes' (L + 2, C) gradients of the weights and the bias."""
    R: tl.constexpr = (L + 1) * (L + 1) - 1
    r, c = tl.arange(0, RP), tl.arange(0, CP)
    inside, there = c < C, (r < R)[:, None] & (c < C)[None, :]
    degrees, shares = _degrees(r, L), tl.load(share + r, mask=r < R, other=0.0)
    d_first, d_bias = tl.zeros((CP,), dtype=tl.float32), tl.zeros((CP,), dtype=tl.float32)
    d_weight = tl.zeros((RP, CP), dtype=tl.float32)
    for node in range(tl.program_id(0).to(tl.int64), count, tl.num_programs(0)):
        mean = tl.load(moments + node * 3)
        scale = tl.load(moments + node * 3 + 1)
        scales = tl.load(moments + node * 3 + 2)

        place = node * ((R + 1) * C) + c
        value = tl.load(x + place, mask=inside, other=0.0)
        given = tl.load(g + place, mask=inside, other=0.0)
        value = tl.where(inside, (value - mean) * scale, 0.0)
        if AFFINE:
            d_first += given * value
            d_bias += given
            given *= tl.load(first + c, mask=inside, other=0.0)
        along = tl.sum(given * value, axis=0) / C
        result = scale * (given - tl.sum(given, axis=0) / C - value * along)
        tl.store(d_x + place, result, mask=inside)

        places = node * ((R + 1) * C) + (r + 1)[:, None] * C + c[None, :]
        values = tl.load(x + places, mask=there, other=0.0) * scales
        gives = tl.load(g + places, mask=there, other=0.0)
        if AFFINE:
            d_weight += gives * values
            gives *= tl.load(weight + degrees[:, None] * C + c[None, :], mask=there, other=0.0)
        along = tl.sum(tl.sum(gives * values, axis=1), axis=0) / C
        results = scales * (gives - values * (shares * along)[:, None])
        tl.store(d_x + places, results, mask=there)
    if AFFINE:
        part = parts + tl.program_id(0).to(tl.int64) * ((L + 2) * C) + c
        tl.store(part, d_first, mask=inside)
        for degree in tl.static_range(L):
            total = tl.sum(tl.where((degrees == degree)[:, None], d_weight, 0.0), axis=0)
            tl.store(part + (degree + 1) * C, total, mask=inside)
        tl.store(part + (L + 1) * C, d_bias, mask=inside)


def layer_norm(
    x: Tensor, first: Tensor | None, bias: Tensor | None, weight: Tensor | None, share: Tensor,
    eps: float,
) -> Tensor:  # fmt: skip
    """Same as ``norm.normalized``, in float32."""
    return _LayerNorm.apply(x, first, bias, weight, share, eps)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx, x, first, bias, weight, share, eps):
        x = x.contiguous()
        if weight is not None:
            first, bias, weight = first.contiguous(), bias.contiguous(), weight.contiguous()
        ctx.sizes = sizes_of(x, weight is not None)
        out, moments = torch.empty_like(x), x.new_empty(len(x), 3)
        ctx.save_for_backward(x, moments, first, weight, share)
        if len(x):
            with on_device_of(x):
                _forward[(len(x),)](
                    x, out, moments, first, bias, weight, share, eps, **ctx.sizes
                )  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, g):
        x, moments, first, weight, share = ctx.saved_tensors
        d_x, g, nodes = torch.empty_like(x), g.contiguous(), len(x)
        programs = min(PROGRAMS, triton.cdiv(nodes, 2))
        parts = None
        if weight is not None:
            parts = x.new_empty(programs, len(weight) + 2, x.shape[2])
        if nodes:
            with on_device_of(x):
                _backward[(programs,)](
                    x, g, d_x, parts, moments, first, weight, share, nodes, **ctx.sizes
                )  # fmt: skip
        if parts is None:
            return d_x, None, None, None, None, None
        total = parts.sum(0)  # in a fixed order
        return d_x, total[0], total[-1], total[1:-1], None, None


def sizes_of(x: Tensor, affine: bool) -> dict[str, Any]:
    """What the kernels are compiled for."""
    _, rows, channels = x.shape
    padded = triton.next_power_of_2(max(1, rows - 1)), triton.next_power_of_2(channels)
    warps = min(16, max(1, padded[0] * padded[1] // VALUES))
    return {
        "L": round(rows**0.5) - 1, "C": channels, "RP": padded[0], "CP": padded[1],
        "AFFINE": affine, "num_warps": warps,
    }  # fmt: skip
