"""Sums over the edges of each node, in the edges' order: no atomics, the same bits every time."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

VALUES = 128  # of a program


@triton.jit
def _add(
    out, values, start, order, first, stop,
    K: tl.constexpr, C: tl.constexpr, STRIDE: tl.constexpr, OFFSET: tl.constexpr,
    ORDERED: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    node = tl.program_id(0).to(tl.int64)
    v = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    inside = v < K * C
    total = tl.zeros((VALUES,), dtype=tl.float32)
    for number in range(tl.load(start + node), tl.load(start + node + 1)):
        edge = number
        if ORDERED:
            edge = tl.load(order + number)
        edge += v * 0  # masks are vectors: Triton's interpreter takes no others
        here = inside & (edge >= first) & (edge < stop)
        place = (edge - first) * (K * STRIDE) + (v // C) * STRIDE + OFFSET + v % C
        total += tl.load(values + place, mask=here, other=0.0).to(tl.float32)
    place = out + node * (K * C) + v
    total += tl.load(place, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, total.to(out.dtype.element_ty), mask=inside)


def add_to_nodes(
    out: Tensor, values: Tensor, start: Tensor, order: Tensor | None, piece: slice, offset: int = 0
) -> None:
    """``out`` += the sum of ``values`` over the edges of each node.

    Args:
        out: (N, K, C)
        values: (n, K, C') for a piece of the edges.
        start: (N + 1,) where the edges of each node begin, in ``order``.
        order: (E,) edges by node; None: as they are.
        piece: which edges the values belong to.
        offset: the first of the C channels among the C'.
    """
    nodes, rows, channels = out.shape
    if nodes == 0 or len(values) == 0:
        return
    programs = (nodes, triton.cdiv(rows * channels, VALUES))
    _add[programs](
        out, values.contiguous(), start, start if order is None else order, piece.start, piece.stop,
        K=rows, C=channels, STRIDE=values.shape[2], OFFSET=offset, ORDERED=order is not None,
        VALUES=VALUES,
    )  # fmt: skip
