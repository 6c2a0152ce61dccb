"""The auxiliary head's parameters before NDeM starts (``ndem.start``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class Waiting:
    """Keeps an optimizer from touching the auxiliary parameters in plain steps.

    Their gradients are 0 then (DDP wants one for every parameter). An optimizer would still let
    weight decay work on them, and count steps whose moments are 0, so that their first real steps
    would be several times too long.

    Args:
        optimizer: of all parameters. auxiliary: those that the plain model does not have.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, auxiliary: Sequence[nn.Parameter]) -> None:
        self.optimizer, self.auxiliary = optimizer, list(auxiliary)
        self._waits = False
        if self.auxiliary:
            optimizer.register_step_pre_hook(self._before_step)

    def set(self, waits: bool, starts: bool) -> None:
        """What the next step is: a plain one, or the first after plain ones."""
        self._waits = waits
        if starts:
            self._forget()

    def complete(self) -> None:
        """Give the auxiliary parameters a state in the optimizer, 0 but for the number of steps.

        torch saves the state of parameters that have one, and loading wants it of all.
        """
        missing = [p for p in self.auxiliary if p not in self.optimizer.state]
        if not missing or not self.optimizer.state:
            return  # torch itself makes the state of an optimizer that has none
        rates = [group["lr"] for group in self.optimizer.param_groups]
        waits, self._waits = self._waits, False
        gradients = {p: p.grad for g in self.optimizer.param_groups for p in g["params"]}
        for parameter in gradients:
            parameter.grad = None
        for parameter in missing:
            parameter.grad = torch.zeros_like(parameter)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0  # nothing moves
        self.optimizer.step()
        for group, rate in zip(self.optimizer.param_groups, rates):
            group["lr"] = rate
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        self._waits = waits

    def keep_from_decay(self, parameter: nn.Parameter | None) -> None:
        """Put a parameter into a group without weight decay: it would pull log c towards 0."""
        if parameter is None:
            return
        for group in self.optimizer.param_groups:
            group["params"] = [p for p in group["params"] if p is not parameter]
        self.optimizer.add_param_group({"params": [parameter], "weight_decay": 0.0})

    def _before_step(self, *_: object) -> None:
        if self._waits:
            for parameter in self.auxiliary:
                parameter.grad = None

    def _forget(self) -> None:
        """Start as a new optimizer would: moments and number of steps 0."""
        for parameter in self.auxiliary:
            for value in self.optimizer.state.get(parameter, {}).values():
                if isinstance(value, torch.Tensor):
                    value.zero_()
