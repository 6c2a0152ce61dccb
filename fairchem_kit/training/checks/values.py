"""Values that cannot be right: a string instead of a number, a size of zero."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

from fairchem_kit.training.checks.messages import hint, shown
from fairchem_kit.training.checks.sections import SPLITS

_SCIENTIFIC = re.compile(r"^[+-]?\d+(\.\d*)?[eE][+-]?\d+$")
_ON_ERROR = ("raise", "warn_and_balance", "warn_and_no_balance")

# key -> (smallest value, whether it is a whole number, other allowed values)
NUMBERS: dict[str, tuple[float, bool, tuple[Any, ...]]] = {
    "batch_size": (1, True, ()),
    "eval_batch_size": (1, True, ()),
    "num_workers": (0, True, ()),
    "max_epochs": (1, True, ()),
    "eval_every": (1, True, ()),
    "checkpoint_every": (1, True, (-1,)),
    "lr_initial": (0, False, ()),
    "clip_grad_norm": (0, False, (None,)),
    "ema_decay": (0, False, (None,)),
    "weight_decay": (0, False, ()),
    "warmup_steps": (0, True, ()),
    "warmup_factor": (0, False, ()),
    "lr_gamma": (0, False, ()),
}
_SELECTION = ("first_n", "sample_n", "max_atoms")
REQUIRED = ("num_workers", "max_epochs", "lr_initial")
DECIMALS = ("warmup_factor", "lr_min_factor", "decay_rate")  # fairchem needs a float


def number_problem(value: Any, where: str, least: float, whole: bool) -> str | None:
    """Why ``value`` is not a number >= ``least``, as a sentence, or None."""
    if isinstance(value, str) and _SCIENTIFIC.match(value.strip()):
        return (
            f"{where} = {shown(value)} is a string, because YAML needs a point and a sign in such "
            f"numbers: write {float(value)!r}."
        )
    if isinstance(value, bool) or not isinstance(value, Real):
        return f"{where} = {shown(value)} must be a {'whole ' if whole else ''}number."
    if not math.isfinite(value) or (whole and value != int(value)):
        return f"{where} = {value} must be a {'whole' if whole else 'finite'} number."
    if value < least:
        return f"{where} = {value} must be at least {least}."
    return None


def number_problems(value: Any, where: str, least: float, whole: bool) -> Iterator[str]:
    """:func:`number_problem` for a check that yields its sentences."""
    problem = number_problem(value, where, least, whole)
    if problem is not None:
        yield problem


def optim_value_problems(optim: Any) -> Iterator[str]:
    """Types and sizes of values in ``optim``."""
    if not isinstance(optim, Mapping):
        return
    for key in REQUIRED:
        if key not in optim:
            yield f"optim.{key} is missing."
    for key, (least, whole, allowed) in NUMBERS.items():
        if key not in optim or optim[key] in allowed:
            continue
        problem = number_problem(optim[key], f"optim.{key}", least, whole)
        if problem is None and key == "max_epochs" and not isinstance(optim[key], int):
            problem = f"optim.max_epochs = {optim[key]} must be written {int(optim[key])}."
        if problem is not None:
            yield problem
    ema = optim.get("ema_decay")
    if isinstance(ema, Real) and ema and not (isinstance(ema, float) and ema < 1):
        yield f"optim.ema_decay = {ema} must be a decimal number below 1, such as 0.999, or null."
    yield from _balancing_problems(optim)
    for key in ("optimizer_params", "scheduler_params"):
        if isinstance(optim.get(key), Mapping):
            yield from _text_problems(optim[key], f"optim.{key}")


def selection_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Numbers by which a dataset section selects records."""
    for name, split in SPLITS.items():
        section = config.get(name)
        if not isinstance(section, Mapping):
            continue
        parts = {key: section.get(key) for key in section if key.endswith("_split_settings")}
        for inside, part in {"": section, **parts}.items():
            for key in _SELECTION:
                value = part.get(key) if isinstance(part, Mapping) else None
                where = ".".join(filter(None, ("dataset", split, inside, key)))
                if value is not None:
                    yield from number_problems(value, where, 1, True)


def _balancing_problems(optim: Mapping[str, Any]) -> Iterator[str]:
    mode, on_error = optim.get("load_balancing"), optim.get("load_balancing_on_error")
    if mode is not None and mode is not False and str(mode).lower() != "atoms":
        yield (
            f"optim.load_balancing = {shown(mode)}: write 'atoms', or null for batches of equal "
            "numbers of structures."
        )
    if on_error is not None and on_error not in _ON_ERROR:
        yield (
            f"optim.load_balancing_on_error = {shown(on_error)} is not known. "
            f"{hint(on_error, _ON_ERROR)}"
        )


def _text_problems(section: Mapping[str, Any], where: str) -> Iterator[str]:
    """Numbers that YAML reads as strings (1e-3), or as integers where fairchem needs a float."""
    for key, value in section.items():
        if key in DECIMALS and type(value) is int and value != 0:
            yield f"{where}.{key} = {value} must be written {value}.0."
        elif key in (*DECIMALS, "warmup_epochs"):
            yield from number_problems(value, f"{where}.{key}", 0, False)
        elif isinstance(value, str) and _SCIENTIFIC.match(value.strip()):
            yield number_problem(value, f"{where}.{key}", -math.inf, False) or ""
