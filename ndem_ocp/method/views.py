"""Extra attributes of a batch, by which it asks the model for a second view.

A batch is any object whose tensors are attributes and items, such as torch_geometric's. Batches are
copied and never changed.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

EPS = "ndem_eps"  # (N, 3) | displacement of each atom, Angstrom
VIEWED = "ndem_viewed"  # (N,) bool | atoms of the structures that get a second view
ENCODED_FORCES = "ndem_encoded_forces"  # (N, 3) | F(X) in the data's unit, 0 on uncorrupted atoms
# Marks a batch that the auxiliary head is for: it has two views, or encoded forces.
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


def as_corrupted(batch: Any, eps: Tensor, forces: Tensor) -> Any:
    """A shallow copy of ``batch`` at X + eps with forces to encode; ``batch`` is not changed.

    Args:
        batch: the batch at X.
        eps: (N, 3) displacements in Angstrom, 0 on uncorrupted atoms.
        forces: (N, 3) F(X) in the data's unit, 0 on uncorrupted atoms.
    """
    corrupted = displaced(batch, eps)
    corrupted[ENCODED_FORCES] = forces
    corrupted[JOINT] = True  # so that the auxiliary head runs
    return corrupted
