"""e3nn's grids on the sphere, made once for each size and not once more for every model.

e3nn derives the polynomials of a grid with sympy, and EquiformerV2 has two grids for each degree
and order: of the seconds that a small model takes to build, nearly all are this. The function
depends on its arguments and torch's default type alone; tests/test_equiformer.py holds that what
is remembered is what e3nn makes.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from e3nn.o3 import _s2grid

made = _s2grid.spherical_harmonics_s2_grid


@functools.cache
def _made(_default: torch.dtype, given: tuple[Any, ...], named: tuple[tuple[str, Any], ...]):
    return made(*given, **dict(named))


def remembered(*given: Any, **named: Any) -> tuple[torch.Tensor, ...]:
    """What e3nn makes, as tensors of the caller's own."""
    found = _made(torch.get_default_dtype(), given, tuple(sorted(named.items())))
    return tuple(tensor.clone() for tensor in found)


def make_grids(lmax: int, resolution: int) -> None:
    """Of a model, before this process is forked: what is forked has them then."""
    for degree in range(lmax + 1):
        remembered(degree, resolution, resolution, dtype=None, device="cpu")


def remember_grids() -> None:
    """For every model of this process."""
    _s2grid.spherical_harmonics_s2_grid = remembered
