"""Constants: those of every forward are copied to its device only once, those of a model derived
only once.

On a GPU, ``torch.tensor(..., device=...)`` and indexing with a list synchronise with the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar
from unittest import mock

import torch
from e3nn.o3 import _s2grid
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


@contextmanager
def grids_once() -> Iterator[None]:
    """Within, e3nn derives the spherical harmonics on a grid once for each degree.

    It derives them with sympy. An EquiformerV2 asks for them twice for each degree and order, and
    uses one of these grids: with L = 6, four fifths of the time that it takes to build a model.
    """
    name = "spherical_harmonics_s2_grid"
    once = cache(getattr(_s2grid, name))
    with mock.patch.object(_s2grid, name, once):
        yield
