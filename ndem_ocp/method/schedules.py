"""Settings that may change over training: a number, or points to interpolate linearly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fairchem_kit.errors import UserError

# A number, or points (fraction of training, value).
Schedule = float | tuple[tuple[float, float], ...]


class SettingsError(UserError, ValueError):
    """An unknown or invalid setting; the message lists what is valid."""


def at(schedule: Schedule, progress: float) -> float:
    """The value of a schedule at a fraction of training, interpolated linearly."""
    if not isinstance(schedule, tuple):
        return schedule
    before = schedule[0]
    for point in schedule:
        if progress <= point[0]:
            if point[0] == before[0]:
                return point[1]
            part = (progress - before[0]) / (point[0] - before[0])
            return before[1] + part * (point[1] - before[1])
        before = point
    return before[1]


def values_of(schedule: Schedule | None) -> list[float]:
    """All values in a schedule; empty for None."""
    if schedule is None:
        return []
    return [value for _, value in schedule] if isinstance(schedule, tuple) else [schedule]


def schedule_of(name: str, given: Any) -> Schedule | None:
    """A schedule from what YAML has: a number, or a mapping {fraction of training: value}.

    Raises:
        SettingsError: naming ``task.ndem.<name>``.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping):
        return finite_number(name, given)
    points = sorted(
        (finite_number(f"{name}'s time", when), finite_number(name, v)) for when, v in given.items()
    )
    if not points or not all(0 <= when <= 1 for when, _ in points):
        raise SettingsError(
            f"task.ndem.{name} = {dict(given)!r}: give a number, or a mapping from "
            "fractions of training (0 to 1) to values, such as {0: 0.3, 0.5: 0.6}."
        )
    return tuple(points)


def is_number(given: Any) -> bool:
    """Whether YAML's value is meant as a number; PyYAML reads 1e-2 as a string."""
    try:
        float(given)
    except (TypeError, ValueError, OverflowError):
        return False
    return not isinstance(given, bool)


def finite_number(name: str, given: Any) -> float:
    """A number from what YAML has.

    Raises:
        SettingsError: naming ``task.ndem.<name>``.
    """
    if not is_number(given) or not math.isfinite(float(given)):
        raise SettingsError(f"task.ndem.{name} = {given!r}: must be a finite number.")
    return float(given)


def as_mapping(schedule: Schedule | None) -> Any:
    """A schedule as plain values that :func:`schedule_of` reads."""
    if not isinstance(schedule, tuple):
        return schedule
    return {str(when): value for when, value in schedule}
