"""Stand-in for torch-sparse in plain PyTorch: the SparseTensor fairchem uses.

The name ``SparseStorage`` is absent on purpose. torch-geometric imports it
together with ``SparseTensor`` to find out whether torch-sparse is there; with
it, torch-geometric would send sparse products and neighbour sampling to
compiled operators that do not exist. Without it, it goes on as it does where
torch-sparse is not installed.
"""

from __future__ import annotations

from typing import NoReturn

from ndem_ocp_standins._sentences import missing_attribute

from .tensor import SparseTensor

# The version whose interface is followed.
__version__ = "0.6.18+standin"
IS_STAND_IN = True

__all__ = ["SparseTensor"]


def __getattr__(name: str) -> NoReturn:
    missing_attribute("torch_sparse", name)
