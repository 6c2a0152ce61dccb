"""Keep the auxiliary head's parameters unchanged until NDeM starts (``ndem.start``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class IdleParameters:
    """Keeps an optimizer from changing the auxiliary parameters in plain steps.

    In these steps their gradients are 0, because DDP needs a gradient of every parameter. An
    optimizer would still apply weight decay to them. It would also count these steps in its
    moments, so that their first real steps would be several times too long.

    Args:
        optimizer: that of all parameters.
        auxiliary: parameters that the plain model does not have.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, auxiliary: Sequence[nn.Parameter]) -> None:
        self.optimizer, self.auxiliary = optimizer, list(auxiliary)
        self._idle = False
        if self.auxiliary:
            optimizer.register_step_pre_hook(self._before_step)

    def set(self, idle: bool, starts: bool) -> None:
        """Announce the next step; ``idle``: it is plain; ``starts``: the first one that is not."""
        self._idle = idle
        if starts:
            self._forget()

    def complete(self) -> None:
        """Give the auxiliary parameters an optimizer state, which is 0 except for the step count.

        torch only saves states that exist, but loading requires one for every parameter.
        """
        missing = [p for p in self.auxiliary if p not in self.optimizer.state]
        if not missing or not self.optimizer.state:
            return  # torch can load an optimizer without any state
        rates = [group["lr"] for group in self.optimizer.param_groups]
        idle, self._idle = self._idle, False
        gradients = {p: p.grad for g in self.optimizer.param_groups for p in g["params"]}
        for parameter in gradients:
            parameter.grad = None
        for parameter in missing:
            parameter.grad = torch.zeros_like(parameter)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0  # so that no parameter changes
        self.optimizer.step()
        for group, rate in zip(self.optimizer.param_groups, rates):
            group["lr"] = rate
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        self._idle = idle

    def keep_from_decay(self, parameter: nn.Parameter | None) -> None:
        """Move a parameter to a group without weight decay, which would pull log c towards 0."""
        if parameter is None:
            return
        for group in self.optimizer.param_groups:
            group["params"] = [p for p in group["params"] if p is not parameter]
        self.optimizer.add_param_group({"params": [parameter], "weight_decay": 0.0})

    def _before_step(self, *_: object) -> None:
        if self._idle:
            for parameter in self.auxiliary:
                parameter.grad = None

    def _forget(self) -> None:
        """Reset moments and step counts to 0, as in a new optimizer."""
        for parameter in self.auxiliary:
            for value in self.optimizer.state.get(parameter, {}).values():
                if isinstance(value, torch.Tensor):
                    value.zero_()
