"""From a fairchem batch to what objectives and fairchem's metrics need."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from ndem_ocp.method import Noise, Step
from ndem_ocp.trainer.config import FORCES


def step_of(
    batch: Batch,
    noise: Noise,
    target: dict[str, Any] | None,
    normalizer: nn.Module | None,
    **rest: Any,
) -> Step:
    """The :class:`~ndem_ocp.method.Step` of a batch.

    Args:
        batch: on its device; ``forces`` and ``fixed`` may be absent.
        noise: the noise of this step.
        target: ``outputs.forces`` in the configuration; None if there are no force labels.
        normalizer: that of the forces, or None.
        **rest: all other fields of ``Step``.
    """
    label = None if target is None else batch.get(FORCES)
    if label is not None and normalizer is not None:
        label = normalizer.norm(label)
    fixed = batch.get("fixed")
    if fixed is None or not (target or {}).get("train_on_free_atoms", True):
        counted = torch.ones_like(noise.moved)
    else:
        counted = fixed == 0
    return Step(batch=batch, noise=noise, label=label, counted=counted, **rest)


def hide_atoms(batch: Batch, hidden: Tensor, free_only: bool) -> Batch:
    """A shallow copy of ``batch``; fairchem's metrics over free atoms leave out ``hidden``."""
    fixed = hidden | (batch.fixed != 0) if free_only else hidden
    seen = copy.copy(batch)
    seen.fixed = fixed.to(batch.fixed.dtype)
    return seen
