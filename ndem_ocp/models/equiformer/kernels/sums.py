"""Sums over the edges of each node in a fixed order: no atomics, bitwise reproducible."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ndem_ocp.models.equiformer.kernels import on_device_of

VALUES = 128  # per program


@triton.jit(do_not_specialize=["first", "stop"])
def _add(
    out, values, start, order, first, stop,
    K: tl.constexpr, C: tl.constexpr, STRIDE: tl.constexpr, OFFSET: tl.constexpr,
    VALUES: tl.constexpr,
):  # fmt: skip
    node = tl.program_id(0).to(tl.int64)
    v = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    inside = v < K * C
    total = tl.zeros((VALUES,), dtype=tl.float32)
    for number in range(tl.load(start + node), tl.load(start + node + 1)):
        # a vector, since Triton's interpreter only takes vectors as masks, of 64 bits
        edge = tl.load(order + number) + (v * 0).to(tl.int64)
        here = inside & (edge >= first) & (edge < stop)
        place = (edge - first) * (K * STRIDE) + (v // C) * STRIDE + OFFSET + v % C
        total += tl.load(values + place, mask=here, other=0.0).to(tl.float32)
    place = out + node * (K * C) + v
    total += tl.load(place, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, total.to(out.dtype.element_ty), mask=inside)


def add_to_nodes(
    out: Tensor, values: Tensor, start: Tensor, order: Tensor, chunk: slice, offset: int = 0
) -> None:
    """``out`` += the sum of ``values`` over the edges of each node.

    Args:
        out: (N, K, C)
        values: (n, K, C') for a chunk of the edges.
        start: (N + 1,) first place in ``order`` of each node's edges.
        order: (E,) edges sorted by node.
        chunk: which edges the values belong to.
        offset: index among the C' of the first of the C channels.
    """
    nodes, rows, channels = out.shape
    if nodes == 0 or len(values) == 0:
        return
    programs = (nodes, triton.cdiv(rows * channels, VALUES))
    whole = out.contiguous()  # a gradient has the strides of its tensor, in whatever order
    with on_device_of(out):
        _add[programs](
            whole, values.contiguous(), start, order, chunk.start, chunk.stop,
            K=rows, C=channels, STRIDE=values.shape[2], OFFSET=offset, VALUES=VALUES,
        )  # fmt: skip
    if whole is not out:
        out.copy_(whole)
