"""Helpers of the autograd functions in this package: chunks, dtypes, gradient buffers.

The large temporaries of EquiformerV2 (rotated messages, S2 grids) are written and then read only
once. Computed in chunks, they stay in the cache of a CPU core, and on a GPU their memory is
bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor

CPU_BYTES = 8 << 20
# On a GPU few pieces are best, since small batches wait for the host; at least, and of its memory.
GPU_BYTES, GPU_PART = 256 << 20, 1 / 64
# A grid is passed over several times, so it should fit in a core's own cache. For messages the
# weights are read again with every chunk, so there should be few.
CPU_GRID_BYTES = 2 << 20


def chunks(total: int, like: Tensor, values_each: int, grid: bool = False) -> Iterator[slice]:
    """Slices of ``total`` rows, each with ``values_each`` temporary values, that fit in a cache."""
    if like.device.type == "cpu":
        budget = CPU_GRID_BYTES if grid else CPU_BYTES
    else:
        budget = gpu_bytes(like.device)
    step = max(16, budget // (values_each * like.element_size()))
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


@cache
def gpu_bytes(device: torch.device) -> int:
    """Bytes that one piece may have: 1.2 GiB on a card with 80 GiB."""
    if not torch.cuda.is_available():  # another kind of device
        return GPU_BYTES
    memory = torch.cuda.get_device_properties(device).total_memory
    return max(GPU_BYTES, int(GPU_PART * memory))


def compute_dtype(like: Tensor) -> torch.dtype:
    """The dtype of matrix products: autocast's if it is enabled, else that of ``like``."""
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype


def gradient_buffer(ctx, number: int, like: Tensor | None) -> Tensor | None:
    """Zeros to accumulate the gradient of input ``number``; None if it is not needed."""
    return torch.zeros_like(like) if like is not None and ctx.needs_input_grad[number] else None


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator for forward and backward of an autograd function: disables autocast.

    The caller has cast the inputs already, and a backward may run under another autocast state than
    its forward.
    """

    @wraps(function)
    def run(ctx: Any, first: Tensor, *rest: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return function(ctx, first, *rest)

    return run
