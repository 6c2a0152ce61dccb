"""Time of the host in each step that need not be: on a GPU, small batches wait for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def use_fused(optimizer: torch.optim.Optimizer) -> None:
    """Let Adam and AdamW on a GPU update many parameters with one kernel instead of fifteen.

    What the configuration sets (``foreach``, ``fused``, ``capturable``, ``differentiable`` in
    optim.optimizer_params) stays. A run resumed from a checkpoint takes its setting from there.
    """
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        return
    for group in optimizer.param_groups:
        asked = any(group.get(key) for key in ("capturable", "differentiable"))
        asked |= any(group.get(key) is not None for key in ("foreach", "fused"))
        if not asked and all(p.is_cuda and p.is_floating_point() for p in group["params"]):
            group["fused"] = True


def switch_only_if_needed(model: nn.Module) -> None:
    """Make ``model.train()`` do nothing if all modules are in this mode already.

    fairchem calls it before each step. Setting the mode of the 543 modules of 31M takes several ms,
    looking at it a sixth of this.
    """
    switch = model.train

    def train(mode: bool = True) -> Any:
        if any(module.training != mode for module in model.modules()):
            switch(mode)
        return model

    model.train = train  # type: ignore[method-assign]
