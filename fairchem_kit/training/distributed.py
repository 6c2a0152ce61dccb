"""Training on several ranks: a model under DistributedDataParallel (DDP), means over all ranks.

DDP waits for the gradient of every parameter in every step. If some parameters take no part in a
step, it waits for them and stops. Looking for unused parameters, or giving them zero gradients,
would cost something in every step and let weight decay move them. So DDP is first built without
them, and built again with them at the first step that needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fairchem.core.modules.loss import DDPLoss
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def rewrap(model: nn.Module, leave_out: Iterable[nn.Parameter] = ()) -> nn.Module:
    """The same model in a new DDP that manages all parameters except ``leave_out``.

    A model without DDP is returned unchanged. Every rank must call this in the same step.
    Parameters remain the same objects, so optimizer and EMA are not affected.
    """
    if not isinstance(model, DistributedDataParallel):
        return model
    # DDP manages the parameters that require a gradient at the time when it is built.
    frozen = [p for p in leave_out if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        return DistributedDataParallel(model.module)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def mean_over_ranks() -> Callable[[Tensor], Tensor]:
    """fairchem's mean over the atoms of all ranks; zero if no rank has any.

    DDP averages gradients over the ranks, so each rank's value is scaled such that the average of
    the ranks' values is the mean over all atoms.
    """
    mean = DDPLoss("l2mae", reduction="mean").mean

    def over_ranks(per_atom: Tensor) -> Tensor:
        value: Tensor = mean(per_atom, per_atom, None)
        return value if per_atom.numel() else value.nan_to_num()

    return over_ranks
