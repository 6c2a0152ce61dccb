"""The same routing of experts for both views of a structure.

A mixture of linear experts chooses weights per structure, from composition, charge, spin and data
set, with dropout in training. Both views of a structure must have the same weights: with a new
dropout, outputs would change as much as by a noise of 0.01 A.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def has_experts(backbone: nn.Module) -> bool:
    """Whether the backbone is a mixture of experts."""
    return getattr(backbone, "num_experts", 0) > 0 and hasattr(backbone, "global_mole_tensors")


@contextlib.contextmanager
def joint_routing(
    backbone: nn.Module, count: int, atoms: int, structures: Tensor
) -> Iterator[None]:
    """Route a joint batch: the first view as usual, second views like their structures.

    Args:
        backbone: of the model. count, atoms: numbers of structures and atoms in the first view.
        structures: (B2,) for each second view, the index of its structure.
    """
    if not has_experts(backbone):
        yield
        return

    def route(*, atomic_numbers_full: Tensor, batch_full: Tensor, csd_mixed_emb: Tensor) -> None:
        type(backbone).set_MOLE_coefficients(
            backbone,
            atomic_numbers_full=atomic_numbers_full[:atoms],
            batch_full=batch_full[:atoms],
            csd_mixed_emb=csd_mixed_emb[:count],
        )
        first = backbone.global_mole_tensors.expert_mixing_coefficients
        both = torch.cat([first, first[structures]])
        backbone.global_mole_tensors.expert_mixing_coefficients = both

    with _routed_by(backbone, route):
        yield


@contextlib.contextmanager
def same_routing(backbone: nn.Module, structures: Tensor) -> Iterator[None]:
    """Route second views as the backbone has just routed the first view.

    Args:
        structures: (B2,) for each second view, the index of its structure.
    """
    if not has_experts(backbone):
        yield
        return
    first = backbone.global_mole_tensors.expert_mixing_coefficients

    def route(**_: Any) -> None:
        backbone.global_mole_tensors.expert_mixing_coefficients = first[structures]

    with _routed_by(backbone, route):
        yield


@contextlib.contextmanager
def _routed_by(backbone: nn.Module, route: Any) -> Iterator[None]:
    backbone.__dict__["set_MOLE_coefficients"] = route  # hides the method of the class
    try:
        yield
    finally:
        del backbone.__dict__["set_MOLE_coefficients"]
