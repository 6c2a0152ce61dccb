"""Messages between nodes and the frames of edges.

    weighted    r o D [x_source, x_target]: gather, rotation and radial weights in one pass
    gradients   its gradients: for the radial weights, and D^T (r o back) for both atoms of an edge

D is block-diagonal by degree (115 of 475 entries at L = 4, M = 2), and only the blocks are read. A
program handles one edge and some channels of one of its atoms; no intermediate result is written to
memory.

Each thread has its own channels and, in registers, the rows of a degree. If rows were an axis of a
tensor, Triton could spread them over threads, which would then wait for each other at every sum.
Hence variables for the rows (l, m) and (l, -m) of four orders: plus0 and minus0 for m = low, ...,
plus3 and minus3 for m = low + 3. Row (l, 0) is in minus0, and orders that a degree lacks are left
out when the kernel is compiled.
"""

from __future__ import annotations

from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from ndem_ocp.models.equiformer.kernels import on_device_of

CHANNELS = 128  # per program, at most: with float32, 16 bytes for each thread of a warp


@triton.jit
def _pair(degree: tl.constexpr, order: tl.constexpr, L: tl.constexpr, EACH: tl.constexpr):
    """Which radial weight (l, m) has: one of its own (EACH = 1), or that of its degree (0)."""
    return EACH * (order * (L + 1) - order * (order + 1) // 2) + degree


@triton.jit
def _row(degree: tl.constexpr, order: tl.constexpr, L: tl.constexpr):
    """The row of (l, -m) in Layout; that of (l, m) is L + 1 - m rows before it."""
    return order * (2 * L + 1 - order) + degree


@triton.jit
def _start(x, source, target, first, K: tl.constexpr, C: tl.constexpr, CHANNELS: tl.constexpr):
    """What a program works on: an edge; its node and channels; these among those of both atoms."""
    edge, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    parts: tl.constexpr = (C + CHANNELS - 1) // CHANNELS
    c = part % parts * CHANNELS + tl.arange(0, CHANNELS)
    at = first + edge
    node = tl.where(part < parts, tl.load(source + at), tl.load(target + at))
    return edge, at, x + node * (K * C) + c, part // parts * C + c, c < C


@triton.jit
def _rotate(
    column, value, plus, minus, degree: tl.constexpr, order: tl.constexpr,
    K: tl.constexpr, L: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Add to the rows of an order: a column of D, times a coefficient."""
    if order <= M and order <= degree:
        entry = column + _row(degree, order, L) * K
        minus += tl.load(entry).to(tl.float32) * value
        if order > 0:
            plus += tl.load(entry - (L + 1 - order) * K).to(tl.float32) * value
    return plus, minus


@triton.jit
def _store_rows(
    out, radial, inside, plus, minus, degree: tl.constexpr, order: tl.constexpr,
    C: tl.constexpr, L: tl.constexpr, M: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    if order <= M and order <= degree:
        place = radial + _pair(degree, order, L, EACH) * (2 * C)
        weight = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        place = out + _row(degree, order, L) * (2 * C)
        tl.store(place, (minus * weight).to(out.dtype.element_ty), mask=inside)
        if order > 0:
            place -= (L + 1 - order) * (2 * C)
            tl.store(place, (plus * weight).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["first"])
def _weighted(
    x, source, target, frames, radial, out, first,
    R: tl.constexpr, K: tl.constexpr, C: tl.constexpr, Q: tl.constexpr, L: tl.constexpr,
    M: tl.constexpr, EACH: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    edge, at, x, c, inside = _start(x, source, target, first, K, C, CHANNELS)
    frame = frames + at * (R * K)
    radial += edge * (Q * 2 * C) + c
    out += edge * (R * 2 * C) + c
    zero = tl.zeros((CHANNELS,), dtype=tl.float32)
    for deg in tl.static_range(0, L + 1):
        for low in tl.static_range(0, M + 1, 4):
            plus0, plus1, plus2, plus3 = zero, zero, zero, zero
            minus0, minus1, minus2, minus3 = zero, zero, zero, zero
            for k in tl.static_range(deg * deg, (deg + 1) * (deg + 1)):
                column = frame + k
                value = tl.load(x + k * C, mask=inside, other=0.0).to(tl.float32)
                plus0, minus0 = _rotate(column, value, plus0, minus0, deg, low, K, L, M)
                plus1, minus1 = _rotate(column, value, plus1, minus1, deg, low + 1, K, L, M)
                plus2, minus2 = _rotate(column, value, plus2, minus2, deg, low + 2, K, L, M)
                plus3, minus3 = _rotate(column, value, plus3, minus3, deg, low + 3, K, L, M)
            _store_rows(out, radial, inside, plus0, minus0, deg, low, C, L, M, EACH)
            _store_rows(out, radial, inside, plus1, minus1, deg, low + 1, C, L, M, EACH)
            _store_rows(out, radial, inside, plus2, minus2, deg, low + 2, C, L, M, EACH)
            _store_rows(out, radial, inside, plus3, minus3, deg, low + 3, C, L, M, EACH)


@triton.jit
def _load_rows(
    back, radial, inside, zero, degree: tl.constexpr, order: tl.constexpr,
    C: tl.constexpr, L: tl.constexpr, M: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """The gradients of the rows of an order, and their radial weight."""
    plus, minus, weight = zero, zero, zero
    if order <= M and order <= degree:
        place = radial + _pair(degree, order, L, EACH) * (2 * C)
        weight = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        place = back + _row(degree, order, L) * (2 * C)
        minus = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        if order > 0:
            place -= (L + 1 - order) * (2 * C)
            plus = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    return plus, minus, weight


@triton.jit
def _rotate_back(
    column, value, plus, minus, weight, d_value, d_weight,
    degree: tl.constexpr, order: tl.constexpr, K: tl.constexpr, L: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Add an order's part to the gradients of a coefficient and of the order's radial weight."""
    if order <= M and order <= degree:
        entry = column + _row(degree, order, L) * K
        turned = tl.load(entry).to(tl.float32) * minus
        if order > 0:
            turned += tl.load(entry - (L + 1 - order) * K).to(tl.float32) * plus
        d_value += turned * weight
        d_weight += turned * value
    return d_value, d_weight


@triton.jit
def _store_weight(
    d_radial, inside, d_weight, degree: tl.constexpr, order: tl.constexpr,
    C: tl.constexpr, L: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Store the gradient of the weight of an order."""
    if order <= M and order <= degree:
        place = d_radial + _pair(degree, order, L, 1) * (2 * C)
        tl.store(place, d_weight.to(d_radial.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["first"])
def _weighted_backward(
    x, source, target, frames, radial, back, d_radial, d_both, first,
    R: tl.constexpr, K: tl.constexpr, C: tl.constexpr, Q: tl.constexpr, L: tl.constexpr,
    M: tl.constexpr, EACH: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    edge, at, x, c, inside = _start(x, source, target, first, K, C, CHANNELS)
    frame = frames + at * (R * K)
    radial += edge * (Q * 2 * C) + c
    d_radial += edge * (Q * 2 * C) + c
    back += edge * (R * 2 * C) + c
    d_both += edge * (K * 2 * C) + c
    zero = tl.zeros((CHANNELS,), dtype=tl.float32)
    for deg in tl.static_range(0, L + 1):
        shared = zero  # the gradient of the weight of the degree
        for low in tl.static_range(0, M + 1, 4):
            plus0, minus0, r0 = _load_rows(back, radial, inside, zero, deg, low, C, L, M, EACH)
            plus1, minus1, r1 = _load_rows(back, radial, inside, zero, deg, low + 1, C, L, M, EACH)
            plus2, minus2, r2 = _load_rows(back, radial, inside, zero, deg, low + 2, C, L, M, EACH)
            plus3, minus3, r3 = _load_rows(back, radial, inside, zero, deg, low + 3, C, L, M, EACH)
            d0, d1, d2, d3 = zero, zero, zero, zero
            for k in tl.static_range(deg * deg, (deg + 1) * (deg + 1)):
                column = frame + k
                value = tl.load(x + k * C, mask=inside, other=0.0).to(tl.float32)
                place, d = d_both + k * (2 * C), zero
                if low > 0:
                    d = tl.load(place, mask=inside, other=0.0).to(tl.float32)
                d, d0 = _rotate_back(column, value, plus0, minus0, r0, d, d0, deg, low, K, L, M)
                d, d1 = _rotate_back(column, value, plus1, minus1, r1, d, d1, deg, low + 1, K, L, M)
                d, d2 = _rotate_back(column, value, plus2, minus2, r2, d, d2, deg, low + 2, K, L, M)
                d, d3 = _rotate_back(column, value, plus3, minus3, r3, d, d3, deg, low + 3, K, L, M)
                tl.store(place, d.to(d_both.dtype.element_ty), mask=inside)
            if EACH == 1:
                _store_weight(d_radial, inside, d0, deg, low, C, L, M)
                _store_weight(d_radial, inside, d1, deg, low + 1, C, L, M)
                _store_weight(d_radial, inside, d2, deg, low + 2, C, L, M)
                _store_weight(d_radial, inside, d3, deg, low + 3, C, L, M)
            else:
                shared += d0 + d1 + d2 + d3
        if EACH == 0:
            place = d_radial + deg * (2 * C)
            tl.store(place, shared.to(d_radial.dtype.element_ty), mask=inside)


def weighted(x: Tensor, radial: Tensor, chunk: slice, where: tuple) -> Tensor:
    """(n, R, 2C) r o D [x_source, x_target] for a chunk of the edges.

    Args:
        x: (N, K, C)
        radial: (n, Q * 2C)
        chunk: of the edges.
        where: Ends, Layout of all degrees, and for each order a slice of the Q radial weights.
    """
    ends, layout, _ = where
    out = x.new_empty(chunk.stop - chunk.start, len(layout.rows), 2 * x.shape[2])
    sizes = _sizes(x, radial, where)
    if len(out):
        with on_device_of(x):
            _weighted[_programs(out, sizes)](
                x.contiguous(), ends.source, ends.target, ends.frames.contiguous(), radial,
                out, chunk.start, **sizes,
            )  # fmt: skip
    return out


def gradients(
    back: Tensor, x: Tensor, radial: Tensor, chunk: slice, where: tuple
) -> tuple[Tensor, Tensor]:
    """Gradients for the radial weights, (n, Q * 2C), and for both atoms of each edge, (n, K, 2C).

    Args:
        back: (n, R, 2C), gradient for the result of :func:`weighted`.
    """
    ends, _, _ = where
    sizes = _sizes(x, radial, where)
    d_radial = torch.empty_like(radial)
    d_both = x.new_empty(len(back), x.shape[1], 2 * x.shape[2])
    if len(back):
        with on_device_of(x):
            _weighted_backward[_programs(back, sizes)](
                x.contiguous(), ends.source, ends.target, ends.frames.contiguous(), radial,
                back.contiguous(), d_radial, d_both, chunk.start, **sizes,
            )  # fmt: skip
    return d_radial, d_both


def _programs(values: Tensor, sizes: dict[str, int]) -> tuple[int, int]:
    return len(values), 2 * triton.cdiv(sizes["C"], sizes["CHANNELS"])


def _sizes(x: Tensor, radial: Tensor, where: tuple) -> dict[str, int]:
    """What the kernels are compiled for."""
    _, layout, shared = where
    channels = x.shape[2]
    counts = [len(layout.of_order(order)) for order in layout.orders]
    own = [part.start for part in shared] == list(accumulate(counts[:-1], initial=0))
    return {
        "R": len(layout.rows), "K": x.shape[1], "C": channels,
        "Q": radial.shape[1] // (2 * channels), "L": layout.lmax, "M": max(layout.orders),
        "EACH": int(own), "CHANNELS": max(32, min(CHANNELS, triton.next_power_of_2(channels))),
        "num_warps": 1,
    }  # fmt: skip
