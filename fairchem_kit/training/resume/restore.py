"""Optimizer, schedule and moving average of a checkpoint, put into those of a configuration.

What a run has learned comes from the checkpoint; what a user writes (learning rate, length,
weight decay) comes from the configuration. Where both say the same, nothing changes to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from fairchem_kit.training.checks.messages import ConfigError

# What a schedule of torch learns as it goes; everything else in its state is its configuration.
_MOVING = (
    *("last_epoch", "_last_lr", "_step_count", "best", "num_bad_epochs", "cooldown_counter"),
    *("T_cur", "T_i", "_get_lr_called_within_step", "_is_initial"),
)
_GROUP_STATE = ("params", "lr")
_MOMENTUM = ("betas", "momentum")


def trained_names(model: nn.Module) -> list[str]:
    """Names of the parameters that are trained, in the order that optimizer and EMA know."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def optimizer_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """Names of each group's parameters, in the order of the optimizer's state."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [[names[p] for p in group["params"]] for group in optimizer.param_groups]


def check_names(saved: list[list[str]] | None, here: list[list[str]], path: str) -> None:
    """Refuse an optimizer's state that belongs to other parameters: it is positional.

    Raises:
        ConfigError: naming the first parameters that differ.
    """
    if saved is None or saved == here:
        return
    before, now = {n for group in saved for n in group}, {n for group in here for n in group}
    gone, new = sorted(before - now), sorted(now - before)
    what = [
        f"{text}: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
        for text, names in (("only in the checkpoint", gone), ("only in this model", new))
        if names
    ] or ["the same parameters in other groups (optim.optimizer_params.weight_decay?)"]
    raise ConfigError(
        f"{path} cannot be resumed with this configuration: its optimizer knows other parameters "
        f"({'; '.join(what)}). Use the configuration it was trained with, or start a new run from "
        "its weights with task.init_from."
    )


def ema_by_name(
    saved: Mapping[str, Any], names: list[str], current: Iterable[Tensor], strict: bool = True
) -> dict[str, Any]:
    """fairchem's positional EMA state in the order of ``names``.

    Args:
        saved: ``checkpoint["ema"]``; with ``names`` if this package wrote it.
        names: trained parameters of the model here.
        current: their shadows here.
        strict: without it a parameter that the checkpoint does not know keeps its shadow.

    Raises:
        ConfigError: if a shadow is missing or has another shape.
    """
    current = list(current)
    shadows, shapes = list(saved["shadow_params"]), [tuple(p.shape) for p in current]
    if saved.get("names") is not None:
        by_name = dict(zip(saved["names"], shadows))
        if not strict:
            by_name = {**dict(zip(names, current)), **by_name}
        missing = [name for name in names if name not in by_name]
        if missing:
            raise ConfigError(
                f"the checkpoint's moving average (EMA) lacks {', '.join(missing[:4])}"
                f"{' ...' if len(missing) > 4 else ''}: it is of another model."
            )
        shadows = [by_name[name] for name in names]
    if [tuple(p.shape) for p in shadows] != shapes:
        raise ConfigError(
            "the checkpoint's moving average (EMA) does not fit this model: "
            f"{len(shadows)} tensors for {len(shapes)} parameters, or other shapes."
        )
    return {**saved, "shadow_params": shadows, "collected_params": []}


def restore_schedule(schedule: Any, saved: Mapping[str, Any] | None, last_epoch: int) -> bool:
    """Put a schedule to where the checkpoint was, on the curve that the configuration asks for.

    Args:
        schedule: a schedule of torch, fresh from the configuration, whose optimizer has its state.
        saved: the schedule's state in the checkpoint.
        last_epoch: how often the schedule has been stepped, in the steps of this run.

    Returns:
        Whether the curve is the checkpoint's own.
    """
    if saved is None:
        return True
    fresh = schedule.state_dict()
    same = all(_equal(saved.get(key), value) for key, value in fresh.items() if key not in _MOVING)
    schedule.load_state_dict(fresh | {key: saved[key] for key in _MOVING if key in saved})
    if same and schedule.last_epoch == last_epoch:
        return True
    schedule.last_epoch = last_epoch
    rates = _rates(schedule)
    if rates is not None:
        for group, rate in zip(schedule.optimizer.param_groups, rates):
            group["lr"] = rate
        schedule._last_lr = rates
    return False


def keep_configured(
    optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]], schedule: Any = None
) -> None:
    """Give each group the settings it had before a state was loaded.

    All but those that move: the current rate, and the momentum where ``schedule`` (of torch) cycles
    it, as OneCycleLR does.
    """
    cycles = getattr(schedule, "cycle_momentum", False)
    moving = (*_GROUP_STATE, *(_MOMENTUM if cycles else ()))
    for group, configured in zip(optimizer.param_groups, groups):
        group.update({key: value for key, value in configured.items() if key not in moving})


def _rates(schedule: Any) -> list[float] | None:
    """Learning rates at ``last_epoch`` by the schedule's own formula; None if it has no formula."""
    if isinstance(schedule, LambdaLR):
        pairs = zip(schedule.base_lrs, schedule.lr_lambdas)
        return [base * factor(schedule.last_epoch) for base, factor in pairs]
    closed = getattr(schedule, "_get_closed_form_lr", None)
    return None if closed is None else list(closed())


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return bool(a == b)
