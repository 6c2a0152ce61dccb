"""fairchem's learning-rate schedules, protected against settings that make them fail."""

from __future__ import annotations

import copy
import logging
from typing import Any

from fairchem_kit.errors import UserError


class ScheduleError(UserError, ValueError):
    """A schedule that cannot be built. The message names the key and says what to do."""


def uses_epochs(optim: dict[str, Any]) -> bool:
    """Whether ``optim`` has EquiformerV2's schedule (in epochs), not fairchem's own (in steps)."""
    return "scheduler_params" in optim


def safe_optim(optim: dict[str, Any], steps_per_epoch: int | None) -> dict[str, Any]:
    """A deep copy of ``optim`` whose warmup lasts at least one step.

    Both schedules of fairchem divide by the number of warmup steps and fail if it is 0. With a
    copy, fairchem cannot convert epochs to steps in the caller's configuration.

    Args:
        optim: the ``optim`` section of a configuration.
        steps_per_epoch: length of the training loader; None if there is none.

    Raises:
        ScheduleError: if a key that the schedule needs is absent.
    """
    safe = copy.deepcopy(optim)
    if uses_epochs(optim):
        params = safe["scheduler_params"]
        _require(params, "optim.scheduler_params", _needed(safe, params))
        warmup = params.get("warmup_epochs")
        if warmup is not None and steps_per_epoch and int(warmup * steps_per_epoch) < 1:
            logging.info("warmup_epochs is less than one step: the warmup lasts one step.")
            params["warmup_epochs"] = 1.5 / steps_per_epoch  # int(1.5) = 1, safe to round
    elif "scheduler" not in safe:
        _require(safe, "optim", ("warmup_steps", "warmup_factor", "lr_milestones", "lr_gamma"))
        safe["warmup_steps"] = max(safe["warmup_steps"], 1)
    return safe


def _needed(optim: dict[str, Any], params: dict[str, Any]) -> tuple[str, ...]:
    if optim.get("scheduler") != "LambdaLR":
        return ()
    kinds = {
        "cosine": ("warmup_epochs", "warmup_factor", "lr_min_factor"),
        "multistep": ("warmup_epochs", "warmup_factor", "decay_epochs", "decay_rate"),
    }
    kind = params.get("lambda_type")
    if kind not in kinds:
        raise ScheduleError(
            f"optim.scheduler_params.lambda_type = {kind!r}: choose one of {', '.join(kinds)}."
        )
    return kinds[kind]


def _require(section: dict[str, Any], where: str, keys: tuple[str, ...]) -> None:
    missing = [key for key in keys if key not in section]
    if missing:
        raise ScheduleError(f"{where} lacks {', '.join(missing)}, which its schedule needs.")
