"""Constants that every forward needs, copied to its device only once.

On a GPU, ``torch.tensor(..., device=...)`` and indexing with a list synchronise with the device.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from fairchem.core.models.equiformer_v2.wigner import _Jd
from torch import Tensor


@cache
def constant(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """These numbers as a tensor, which is shared: never write to it."""
    with torch.inference_mode(False):  # so that autograd may save it for a backward
        return torch.tensor(values, dtype=dtype, device=device)


def index(values: list[int], like: Tensor) -> Tensor:
    """An index tensor on the device of ``like``."""
    return constant(tuple(values), torch.long, like.device)


@cache
def swap_axes(degree: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """J of e3nn, (2l + 1, 2l + 1): the Wigner matrix that swaps the axes y and z."""
    with torch.inference_mode(False):
        return _Jd[degree].to(device=device, dtype=dtype)


def clear() -> None:
    """Empty the cache."""
    constant.cache_clear()
    swap_axes.cache_clear()
