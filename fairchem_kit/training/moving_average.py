"""fairchem's moving average of the weights, updated in one call instead of three per parameter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
from torch import nn


class MovingAverage(ExponentialMovingAverage):
    """fairchem's, to the bit on the CPU, and without its temporary copy of each parameter."""

    @torch.no_grad()
    def update(self, parameters: Iterable[nn.Parameter] | None = None) -> None:
        # Elsewhere torch's lerp rounds in another order than fairchem's sum.
        same = self.decay > 0.5 and self.num_updates is None
        if same and all(s.dtype in (torch.float32, torch.float64) for s in self.shadow_params):
            weights = list(self._get_parameters(parameters))
            torch._foreach_lerp_(self.shadow_params, weights, 1.0 - self.decay)
        else:
            super().update(parameters)


@contextlib.contextmanager
def averaged_weights(ema: ExponentialMovingAverage | None) -> Iterator[None]:
    """Use the moving average, if there is one, as the model's weights in this context."""
    if ema is None:
        yield
        return
    ema.store()
    ema.copy_to()
    try:
        yield
    finally:
        ema.restore()
