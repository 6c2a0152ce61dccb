"""Work on edges and grids in pieces that stay in a processor's cache.

The large temporaries of EquiformerV2, rotated messages and S2 grids, are read once after they are
written. In pieces they never leave the cache of a CPU core, and on a GPU their memory is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor

CPU_BYTES, GPU_BYTES = 8 << 20, 256 << 20


def pieces(total: int, like: Tensor, values_each: int) -> Iterator[slice]:
    """Slices over ``total`` rows, each with a temporary of ``values_each`` values per row."""
    budget = CPU_BYTES if like.device.type == "cpu" else GPU_BYTES
    step = max(16, budget // (values_each * like.element_size()))
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


def compute_dtype(like: Tensor) -> torch.dtype:
    """What matrix products are computed in: autocast's type where it is on."""
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype


def grad(ctx, number: int, like: Tensor | None) -> Tensor | None:
    """Zeros to add up the gradient of input ``number`` in, None if nobody asks for it."""
    return torch.zeros_like(like) if like is not None and ctx.needs_input_grad[number] else None


def in_given_types(function: Callable[..., Any]) -> Callable[..., Any]:
    """For the two methods of an autograd function: no autocast inside, the caller has cast.

    A backward may run under another autocast than its forward.
    """

    @wraps(function)
    def run(ctx: Any, first: Tensor, *rest: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return function(ctx, first, *rest)

    return run
