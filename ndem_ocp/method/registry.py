"""Objectives by their names, which are the values of ``task.ndem.objective``."""

from __future__ import annotations

from typing import Any

OBJECTIVES: dict[str, Any] = {}  # name -> class


def register(objective: Any) -> Any:
    """Class decorator: register an :class:`~ndem_ocp.method.objective.Objective` by its name."""
    OBJECTIVES[objective.name] = objective
    return objective


def objective_of(settings: Any) -> Any:
    """The :class:`~ndem_ocp.method.objective.Objective` that ``task.ndem`` asks for."""
    return OBJECTIVES[settings.objective].of(settings)


def objectives_with(setting: str) -> tuple[str, ...]:
    """Names of the objectives that use a setting."""
    own = [name for name, each in OBJECTIVES.items() if setting in each.own_settings]
    return tuple(own or OBJECTIVES)
