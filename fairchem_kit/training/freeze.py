"""``task.freeze``: names of parameters that are not trained.

    task:
      freeze: backbone                              # a whole module
      freeze: ["backbone.blocks.[0-5].*", "*.sphere_embedding.*"]   # shell patterns

Frozen parameters are left out of the optimizer (so no weight decay), the moving average and DDP.
"""

from __future__ import annotations

import difflib
import fnmatch
import logging
from typing import Any

import torch
from fairchem.core.common import distutils
from torch import nn

from fairchem_kit.training.checks.messages import ConfigError
from fairchem_kit.training.component import Component
from fairchem_kit.training.distributed import rewrap
from fairchem_kit.words import counted

_SHOWN = 12


class Freeze(Component):
    """Freezes parameters in ``task.freeze`` before optimizer and moving average are built."""

    task_keys = ("freeze",)

    def after_model(self) -> None:
        trainer = self.trainer
        self._frozen = freeze(trainer._unwrapped_model, self.config["task"].get("freeze"))
        if self._frozen:
            trainer.model = rewrap(trainer.model)

    def after_optimizer(self) -> None:
        if self._frozen:
            leave_out_frozen(self.trainer.optimizer)


def freeze(model: nn.Module, patterns: Any) -> int:
    """Freeze all parameters that match a pattern, and log how many.

    Args:
        model: not wrapped in DDP.
        patterns: ``task.freeze``: a pattern or a list of patterns, which must match the whole name
            of a parameter (``backbone.norm.affine_weight``). The name of a module stands for all
            its parameters. None or [] freezes nothing.

    Returns:
        Number of frozen parameters (scalars), 0 without patterns.

    Raises:
        ConfigError: for a pattern that matches nothing, or if nothing is left to train.
    """
    given = [patterns] if isinstance(patterns, str) else patterns or []
    if not isinstance(given, (list, tuple)) or not all(isinstance(p, str) and p for p in given):
        raise ConfigError(
            f"task.freeze = {patterns!r}: must be a pattern such as backbone, or a list."
        )
    if not given:
        return 0
    parameters = dict(model.named_parameters())
    frozen = {}
    for pattern in given:
        matched = [name for name in parameters if _matches(name, pattern)]
        if not matched:
            raise ConfigError(_nothing(pattern, list(parameters)))
        frozen |= {name: parameters[name] for name in matched}
    if len(frozen) == len(parameters):
        raise ConfigError(f"task.freeze = {patterns!r} freezes every parameter of the model.")
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    count = sum(parameter.numel() for parameter in frozen.values())
    if distutils.is_master():
        total = sum(parameter.numel() for parameter in parameters.values())
        logging.info(
            f"task.freeze: {len(frozen)} of {counted(len(parameters), 'tensor')} frozen, {count:,} "
            f"of {counted(total, 'parameter')}; {total - count:,} are trained."
        )
    return count


def leave_out_frozen(optimizer: torch.optim.Optimizer) -> None:
    """Remove frozen parameters from a new optimizer.

    fairchem only leaves them out if weight decay is above 0.
    """
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p.requires_grad]


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")


def _nothing(pattern: str, names: list[str]) -> str:
    modules: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        for length in range(1, min(len(parts), 4)):
            modules[".".join(parts[:length])] = None
    shown = ", ".join(list(modules)[:_SHOWN]) + (", ..." if len(modules) > _SHOWN else "")
    close = difflib.get_close_matches(pattern, modules, n=1)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"task.freeze: {pattern!r} matches no parameter.{meant} Modules of this model: {shown}; * "
        "matches anything."
    )
