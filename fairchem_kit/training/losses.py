"""Losses registered with fairchem, for the ``loss_functions`` of a configuration."""

from __future__ import annotations

from fairchem.core.common.registry import registry
from torch import Tensor, nn


@registry.register_loss("squared_l2")
class SquaredL2Loss(nn.Module):
    """|| f*_i - f_i ||^2 per atom, the force loss of Eq. 9 (three times fairchem's ``mse``)."""

    def forward(self, pred: Tensor, target: Tensor, natoms: Tensor) -> Tensor:
        """(n, 3), (n, 3) normalised -> (n,); fairchem's DDPLoss does the reduction."""
        return (pred - target).square().sum(-1)
