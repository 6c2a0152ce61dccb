"""Adam on a GPU: one kernel for many parameters instead of about fifteen."""

from __future__ import annotations

import torch


def use_fused(optimizer: torch.optim.Optimizer) -> None:
    """Let Adam and AdamW use their fused kernels where all parameters are on a GPU.

    What the configuration sets (``foreach``, ``fused``, ``capturable``, ``differentiable`` in
    optim.optimizer_params) stays, and so does what a checkpoint from before says.
    """
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        return
    for group in optimizer.param_groups:
        asked = any(group.get(key) for key in ("capturable", "differentiable"))
        asked |= any(group.get(key) is not None for key in ("foreach", "fused"))
        if not asked and all(p.is_cuda and p.is_floating_point() for p in group["params"]):
            group["fused"] = True
