"""Softmax over the edges of each node, in a fixed order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ndem_ocp.models.equiformer.kernels import on_device_of


@triton.jit
def _softmax(logits, start, order, out, H: tl.constexpr, HEADS: tl.constexpr):
    node = tl.program_id(0).to(tl.int64)
    h = tl.arange(0, HEADS)
    first, end = tl.load(start + node), tl.load(start + node + 1)
    highest = tl.full((HEADS,), float("-inf"), dtype=tl.float32)
    for number in range(first, end):
        place = tl.load(order + number) * H + h
        highest = tl.maximum(highest, tl.load(logits + place, mask=h < H, other=0.0).to(tl.float32))
    total = tl.full((HEADS,), 1e-16, dtype=tl.float32)
    for number in range(first, end):
        place = tl.load(order + number) * H + h
        value = tl.load(logits + place, mask=h < H, other=0.0).to(tl.float32)
        total += tl.exp(value - highest)
    for number in range(first, end):
        place = tl.load(order + number) * H + h
        value = tl.load(logits + place, mask=h < H, other=0.0).to(tl.float32)
        value = tl.exp(value - highest) / total
        tl.store(out + place, value.to(out.dtype.element_ty), mask=h < H)


@triton.jit
def _softmax_backward(weights, g, start, order, out, H: tl.constexpr, HEADS: tl.constexpr):
    node = tl.program_id(0).to(tl.int64)
    h = tl.arange(0, HEADS)
    first, end = tl.load(start + node), tl.load(start + node + 1)
    mean = tl.zeros((HEADS,), dtype=tl.float32)
    for number in range(first, end):
        place = tl.load(order + number) * H + h
        weight = tl.load(weights + place, mask=h < H, other=0.0).to(tl.float32)
        mean += weight * tl.load(g + place, mask=h < H, other=0.0).to(tl.float32)
    for number in range(first, end):
        place = tl.load(order + number) * H + h
        weight = tl.load(weights + place, mask=h < H, other=0.0).to(tl.float32)
        given = tl.load(g + place, mask=h < H, other=0.0).to(tl.float32)
        tl.store(out + place, (weight * (given - mean)).to(out.dtype.element_ty), mask=h < H)


def softmax(logits: Tensor, start: Tensor, order: Tensor) -> Tensor:
    """(E, H), a softmax over the edges of each node.

    Args:
        logits: (E, H)
        start, order: the edges of each node (``messages.ByNode``).
    """
    out = torch.empty_like(logits, memory_format=torch.contiguous_format)
    _run(_softmax, start, logits.contiguous(), start, order, out)
    return out


def softmax_backward(weights: Tensor, g: Tensor, start: Tensor, order: Tensor) -> Tensor:
    """The gradient for the logits, (E, H), from that for the weights."""
    out = torch.empty_like(weights)
    _run(_softmax_backward, start, weights, g.contiguous(), start, order, out)
    return out


def _run(kernel, start: Tensor, *arguments: Tensor) -> None:
    out = arguments[-1]
    if out.numel():
        heads = out.shape[1]
        with on_device_of(out):
            kernel[(len(start) - 1,)](
                *arguments, H=heads, HEADS=triton.next_power_of_2(heads), num_warps=1
            )
