"""Sums over the edges of each node in a fixed order: no atomics, bitwise reproducible."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

VALUES = 128  # per program


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
        edge += v * 0  # makes it a vector: Triton's interpreter only takes vectors as masks
        here = inside & (edge >= first) & (edge < stop)
        place = (edge - first) * (K * STRIDE) + (v // C) * STRIDE + OFFSET + v % C
        total += tl.load(values + place, mask=here, other=0.0).to(tl.float32)
    place = out + node * (K * C) + v
    total += tl.load(place, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, total.to(out.dtype.element_ty), mask=inside)


def add_to_nodes(
    out: Tensor, values: Tensor, start: Tensor, order: Tensor | None, chunk: slice, offset: int = 0
) -> None:
    """``out`` += the sum of ``values`` over the edges of each node.

    Args:
        out: (N, K, C)
        values: (n, K, C') for a chunk of the edges.
        start: (N + 1,) first place in ``order`` of each node's edges.
        order: (E,) edges sorted by node; None: they are sorted already.
        chunk: which edges the values belong to.
        offset: index among the C' of the first of the C channels.
    """
    nodes, rows, channels = out.shape
    if nodes == 0 or len(values) == 0:
        return
    programs = (nodes, triton.cdiv(rows * channels, VALUES))
    _add[programs](
        out, values.contiguous(), start, start if order is None else order, chunk.start, chunk.stop,
        K=rows, C=channels, STRIDE=values.shape[2], OFFSET=offset, ORDERED=order is not None,
        VALUES=VALUES,
    )  # fmt: skip
