"""Restore optimizer, schedule and moving average from a checkpoint.

Everything learned comes from the checkpoint; settings (learning rate, length, weight decay) come
from the configuration. If settings have not changed, the result is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from fairchem_kit.training.checks.messages import ConfigError
from fairchem_kit.words import counted

# State of torch's schedules that changes with the steps; the rest of it is configuration.
_MOVING = (
    *("last_epoch", "_last_lr", "_step_count", "best", "num_bad_epochs", "cooldown_counter"),
    *("T_cur", "T_i", "_get_lr_called_within_step", "_is_initial"),
)
_GROUP_STATE = ("params", "lr")
_MOMENTUM = ("betas", "momentum")


def trained_names(model: nn.Module) -> list[str]:
    """Names of the trained parameters, in the order of optimizer and EMA."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def optimizer_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """Names of each group's parameters, in the order of the optimizer's state."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [[names[p] for p in group["params"]] for group in optimizer.param_groups]


def check_names(saved: list[list[str]] | None, here: list[list[str]], path: str) -> None:
    """Refuse an optimizer state of other parameters; it has no names, only an order.

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
    ] or ["the same parameters in other groups (was optim.optimizer_params.weight_decay changed?)"]
    raise ConfigError(
        f"{path} cannot be resumed with this configuration: its optimizer has other parameters "
        f"({'; '.join(what)}). Use the configuration it was trained with, or start a new run from "
        "its weights with task.init_from."
    )


def ema_by_name(
    saved: Mapping[str, Any], names: list[str], current: Iterable[Tensor], strict: bool = True
) -> dict[str, Any]:
    """fairchem's EMA state, which is an ordered list, in the order of ``names``.

    Args:
        saved: ``checkpoint["ema"]``; it has ``names`` if this package wrote it.
        names: trained parameters of the model.
        current: their moving averages in this run.
        strict: if False, a parameter that is not in the checkpoint keeps its moving average.

    Raises:
        ConfigError: if an average is missing or has another shape.
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
                f"{' ...' if len(missing) > 4 else ''}: it is from another model."
            )
        shadows = [by_name[name] for name in names]
    if [tuple(p.shape) for p in shadows] != shapes:
        raise ConfigError(
            "the checkpoint's moving average (EMA) does not fit this model: "
            f"{counted(len(shadows), 'tensor')} for {counted(len(shapes), 'parameter')}, or "
            "other shapes."
        )
    return {**saved, "shadow_params": shadows, "collected_params": []}


def restore_schedule(schedule: Any, saved: Mapping[str, Any] | None, last_epoch: int) -> bool:
    """Advance a schedule, as defined by the configuration, to the step of the checkpoint.

    Args:
        schedule: a new torch schedule from the configuration; its optimizer is already restored.
        saved: the schedule's state in the checkpoint.
        last_epoch: number of steps of the schedule, in the steps of this run.

    Returns:
        Whether the schedule is the same as in the checkpoint.
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


def configured(
    saved: Mapping[str, Any], groups: list[dict[str, Any]], schedule: Any = None
) -> dict[str, Any]:
    """An optimizer's saved state with the settings of this run's parameter groups.

    Except those that change during training: the learning rate, and the momentum if ``schedule``
    (of torch) changes it, as OneCycleLR does. To be called before the state is loaded, because
    ``fused`` decides on which device torch puts it.
    """
    cycles = getattr(schedule, "cycle_momentum", False)
    moving = (*_GROUP_STATE, *(_MOMENTUM if cycles else ()))
    here = [{k: v for k, v in group.items() if k not in moving} for group in groups]
    if len(here) == len(saved["param_groups"]):  # torch refuses another number
        saved = {**saved, "param_groups": [a | b for a, b in zip(saved["param_groups"], here)]}
    return dict(saved)


def _rates(schedule: Any) -> list[float] | None:
    """Learning rates at ``last_epoch`` from the schedule's closed form; None if it has none."""
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
