"""Constants that every forward needs, copied to its device only once.

On a GPU, ``torch.tensor(..., device=...)`` and indexing with a list synchronise with the device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


_kept: list[Any] = []


def kept(make: F) -> F:
    """Decorator: results are cached until :func:`clear`."""
    cached = cache(make)
    _kept.append(cached)
    return cached  # type: ignore[return-value]


@kept
def constant(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """These numbers as a tensor, which is shared: never write to it."""
    with torch.inference_mode(False):  # so that autograd may save it for a backward
        return torch.tensor(values, dtype=dtype, device=device)


def index(values: list[int], like: Tensor) -> Tensor:
    """An index tensor on the device of ``like``."""
    return constant(tuple(values), torch.long, like.device)


def clear() -> None:
    """Empty the caches."""
    for cached in _kept:
        cached.cache_clear()
