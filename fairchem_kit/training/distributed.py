"""A model under DistributedDataParallel (DDP), which wants every parameter in every step.

Parameters that take no part in a step make DDP wait for their gradients and stop. Looking for
unused parameters, or giving them gradients of zero, would cost something in every step and let
weight decay move them. So DDP is built without them, and once more, with them, at the first step
that needs them.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def rewrap(model: nn.Module, leave_out: Iterable[nn.Parameter] = ()) -> nn.Module:
    """The same model under a new DDP that manages all parameters but ``leave_out``.

    A model without DDP is returned as it is. Every rank must call this in the same step. The
    parameters stay the same objects, so optimizer and EMA need not know.
    """
    if not isinstance(model, DistributedDataParallel):
        return model
    # DDP takes the parameters that require a gradient when it is built, and no later ones.
    frozen = [p for p in leave_out if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        return DistributedDataParallel(model.module)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
