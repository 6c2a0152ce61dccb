"""Stand-in for torch-scatter in plain PyTorch: scatter, segment and gather."""

from __future__ import annotations

from typing import NoReturn

from ndem_ocp_standins._sentences import missing_attribute

from .scatter import (
    scatter,
    scatter_add,
    scatter_max,
    scatter_mean,
    scatter_min,
    scatter_mul,
    scatter_sum,
)
from .segment import gather_coo, gather_csr, segment_coo, segment_csr
from .utils import broadcast

# The version whose interface is followed.
__version__ = "2.1.2+standin"
IS_STAND_IN = True

__all__ = [
    "broadcast",
    "gather_coo",
    "gather_csr",
    "scatter",
    "scatter_add",
    "scatter_max",
    "scatter_mean",
    "scatter_min",
    "scatter_mul",
    "scatter_sum",
    "segment_coo",
    "segment_csr",
]


def __getattr__(name: str) -> NoReturn:
    missing_attribute("torch_scatter", name)
