"""Messages between nodes and the frames of edges.

    weighted    r o D [x_source, x_target]: gather, rotation and radial weights in one pass
    gradients   its gradients: for the radial weights, and D^T (r o back) for both atoms of an edge

D is block-diagonal by degree (115 of 475 entries at L = 4, M = 2), and only the blocks are read. A
program handles one edge and some channels; no intermediate result is written to memory.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ndem_ocp.models.equiformer.kernels import on_device_of
from ndem_ocp.models.equiformer.layout import Layout

CHANNELS = 128  # per program


class Tables(NamedTuple):
    """The rows of each degree, and its radial weights; padded with -1."""

    rows: Tensor  # (L + 1, width) index of the row in the layout
    pairs: Tensor  # (L + 1, width) index of the radial weight for the row
    weights: Tensor  # (L + 1, most) the radial weights of the degree, without repetition
    complete: bool  # whether every radial weight is used by a row


@cache
def tables(
    layout: Layout, shared: tuple[tuple[int, int], ...], weights: int, device: torch.device
) -> Tables:
    """``shared``: (first, end) of each order among the weights of a channel."""
    width = triton.next_power_of_2(2 * layout.mmax + 1)
    rows = [[-1] * width for _ in range(layout.lmax + 1)]
    pairs = [[-1] * width for _ in range(layout.lmax + 1)]
    filled = [0] * (layout.lmax + 1)
    for number, (degree, m) in enumerate(layout.rows):
        order = abs(m)
        place = filled[degree]
        rows[degree][place] = number
        pairs[degree][place] = shared[layout.orders.index(order)][0] + layout.of_order(order).index(
            degree
        )
        filled[degree] += 1
    once = [sorted({pair for pair in each if pair >= 0}) for each in pairs]
    complete = sum(map(len, once)) == weights
    most = max(map(len, once))
    once = [each + [-1] * (most - len(each)) for each in once]
    with torch.inference_mode(False):
        made = [
            torch.tensor(table, dtype=torch.int32, device=device) for table in (rows, pairs, once)
        ]
    return Tables(*made, complete)


@triton.jit
def _rotated(
    x, node, c, inside, frames, at, row, degree: tl.constexpr,
    R: tl.constexpr, K: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """D [x_source, x_target] for one degree, (rows, channels)."""
    total = tl.zeros((WIDTH, CHANNELS), dtype=tl.float32)
    for k in tl.static_range(degree * degree, (degree + 1) * (degree + 1)):
        value = tl.load(x + (node * K + k) * C + c % C, mask=inside, other=0.0).to(tl.float32)
        d = tl.load(frames + (at * R + row) * K + k, mask=row >= 0, other=0.0).to(tl.float32)
        total += d[:, None] * value[None, :]
    return total


@triton.jit(do_not_specialize=["first"])
def _weighted(
    x, source, target, frames, radial, rows, pairs, out, first,
    R: tl.constexpr, K: tl.constexpr, C: tl.constexpr, Q: tl.constexpr, L: tl.constexpr,
    WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    edge = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside, at = c < 2 * C, first + edge
    node = tl.where(c < C, tl.load(source + at), tl.load(target + at))
    j = tl.arange(0, WIDTH)
    for degree in tl.static_range(0, L + 1):
        row = tl.load(rows + degree * WIDTH + j)
        pair = tl.load(pairs + degree * WIDTH + j)
        there = (row >= 0)[:, None] & inside[None, :]
        rotated = _rotated(x, node, c, inside, frames, at, row, degree, R, K, C, WIDTH, CHANNELS)
        weight = radial + (edge * Q + pair)[:, None] * (2 * C) + c[None, :]
        rotated *= tl.load(weight, mask=there, other=0.0).to(tl.float32)
        place = out + (edge * R + row)[:, None] * (2 * C) + c[None, :]
        tl.store(place, rotated.to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["first"])
def _weighted_backward(
    x, source, target, frames, radial, rows, pairs, weights, back, d_radial, d_both, first,
    R: tl.constexpr, K: tl.constexpr, C: tl.constexpr, Q: tl.constexpr, L: tl.constexpr,
    WIDTH: tl.constexpr, CHANNELS: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    edge = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside, at = c < 2 * C, first + edge
    node = tl.where(c < C, tl.load(source + at), tl.load(target + at))
    j = tl.arange(0, WIDTH)
    for degree in tl.static_range(0, L + 1):
        row = tl.load(rows + degree * WIDTH + j)
        pair = tl.load(pairs + degree * WIDTH + j)
        there = (row >= 0)[:, None] & inside[None, :]
        given = tl.load(
            back + (edge * R + row)[:, None] * (2 * C) + c[None, :], mask=there, other=0.0
        )
        given = given.to(tl.float32)
        rotated = _rotated(x, node, c, inside, frames, at, row, degree, R, K, C, WIDTH, CHANNELS)
        rotated *= given
        # +m and -m, or all orders of a degree, share one weight
        for one in tl.static_range(0, MOST):
            which = tl.load(weights + degree * MOST + one)
            # again, as a vector: Triton's interpreter only takes vectors as masks
            stored = tl.load(weights + degree * MOST + one + c * 0)
            mine = tl.sum(tl.where((pair == which)[:, None], rotated, 0.0), axis=0)
            place = d_radial + (edge * Q + stored) * (2 * C) + c
            tl.store(place, mine.to(d_radial.dtype.element_ty), mask=inside & (stored >= 0))
        weight = radial + (edge * Q + pair)[:, None] * (2 * C) + c[None, :]
        given *= tl.load(weight, mask=there, other=0.0).to(tl.float32)
        for k in tl.static_range(degree * degree, (degree + 1) * (degree + 1)):
            d = tl.load(frames + (at * R + row) * K + k, mask=row >= 0, other=0.0).to(tl.float32)
            value = tl.sum(d[:, None] * given, axis=0)
            place = d_both + (edge * K + k) * (2 * C) + c
            tl.store(place, value.to(d_both.dtype.element_ty), mask=inside)


def weighted(x: Tensor, radial: Tensor, chunk: slice, where: tuple) -> Tensor:
    """(n, R, 2C) r o D [x_source, x_target] for a chunk of the edges.

    Args:
        x: (N, K, C)
        radial: (n, Q * 2C)
        chunk: of the edges.
        where: Ends, Layout, and for each order a slice of the Q radial weights.
    """
    ends, layout, _ = where
    out = x.new_empty(chunk.stop - chunk.start, len(layout.rows), 2 * x.shape[2])
    table, sizes = _prepared(x, radial, where)
    if len(out):
        with on_device_of(x):
            _weighted[_programs(out)](
                x.contiguous(), ends.source, ends.target, ends.frames.contiguous(), radial,
                table.rows, table.pairs, out, chunk.start, **sizes,
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
    table, sizes = _prepared(x, radial, where)
    d_radial = torch.empty_like(radial) if table.complete else torch.zeros_like(radial)
    d_both = x.new_empty(len(back), x.shape[1], 2 * x.shape[2])
    if len(back):
        with on_device_of(x):
            _weighted_backward[_programs(back)](
                x.contiguous(), ends.source, ends.target, ends.frames.contiguous(), radial,
                table.rows, table.pairs, table.weights, back.contiguous(), d_radial, d_both,
                chunk.start, MOST=table.weights.shape[1], **sizes,
            )  # fmt: skip
    return d_radial, d_both


def _programs(values: Tensor) -> tuple[int, int]:
    return len(values), triton.cdiv(values.shape[2], CHANNELS)


def _prepared(x: Tensor, radial: Tensor, where: tuple) -> tuple[Tables, dict[str, int]]:
    _, layout, shared = where
    weights = radial.shape[1] // (2 * x.shape[2])
    parts = tuple((part.start, part.stop) for part in shared)
    table = tables(layout, parts, weights, x.device)
    sizes = {
        "R": len(layout.rows), "K": x.shape[1], "C": x.shape[2], "Q": weights, "L": layout.lmax,
        "WIDTH": table.rows.shape[1], "CHANNELS": CHANNELS,
    }  # fmt: skip
    return table, sizes
