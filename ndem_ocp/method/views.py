"""How a batch asks a model for a second view: attributes in addition to the data's own.

A batch is anything that holds tensors as attributes and by name, as torch_geometric's does. It is
copied, not changed.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

EPS = "ndem_eps"  # (N, 3) | displacement of each atom, Angstrom
VIEWED = "ndem_viewed"  # (N,) bool | atoms of the structures that get a second view
TOLD_FORCES = "ndem_told_forces"  # (N, 3) | F(X) in the data's unit, 0 on atoms not corrupted
# Marks a batch for which the auxiliary head works: one made of two views, or one that tells forces.
JOINT = "ndem_joint"


def with_second_view(batch: Any, eps: Tensor, viewed: Tensor) -> Any:
    """A shallow copy of ``batch`` that asks for a second view; ``batch`` itself is not changed."""
    marked = copy.copy(batch)
    marked[EPS] = eps
    marked[VIEWED] = viewed
    return marked


def displaced(batch: Any, eps: Tensor) -> Any:
    """A shallow copy of ``batch`` at X + eps."""
    moved = copy.copy(batch)
    moved.pos = batch.pos + eps
    return moved


def as_corrupted(batch: Any, eps: Tensor, told: Tensor) -> Any:
    """A shallow copy of ``batch`` at X + eps that tells forces; ``batch`` itself is not changed.

    Args:
        batch: the batch at X.
        eps: (N, 3) displacements in Angstrom, 0 on atoms not corrupted.
        told: (N, 3) forces in the data's unit, 0 on atoms not corrupted.
    """
    corrupted = displaced(batch, eps)
    corrupted[TOLD_FORCES] = told
    corrupted[JOINT] = True  # wakes the auxiliary head
    return corrupted
