"""An arm in one line: objective, target, place, coefficient, sigma, potential."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairchem_kit.report.page.runs import Run

_TARGETS = {
    "isotropic": "target isotropic (c·eps)",
    "second_views": "target second_views",
    "first_order": "target first_order (energies alone)",
}


def method(run: Run) -> str:
    """Plain training, or the objective with its main settings."""
    if run.is_plain is None:
        return "not recorded"
    if run.is_plain:
        return "plain training"
    ndem = run.ndem
    objective = str(ndem.get("objective", "ndem"))
    parts = [objective]
    instead = False
    if objective == "ndem":  # the others have neither
        target = str(ndem.get("target", "isotropic"))
        instead = (ndem.get("place") or ("beside" if target == "isotropic" else "instead")) != (
            "beside"
        )
        parts.append(_TARGETS.get(target, f"target {target}"))
        parts.append("replacing structures" if instead else "in addition to the structures")
    parts.append(f"coefficient {over_training(ndem['coefficient'])}")
    if instead and ndem.get("share") is not None:
        parts.append(f"share {over_training(ndem['share'])}")
    parts += _sigma(ndem)
    if ndem.get("trust") is not None:
        parts.append(f"trust {over_training(ndem['trust'])}")
    if ndem.get("target") != "second_views" and ndem.get("corrupt_ratio") is not None:
        parts.append(f"corrupt_ratio {over_training(ndem['corrupt_ratio'])}")
    if not instead:
        parts.append(f"norm {ndem.get('norm')}")
    potential = ndem.get("second_views_of")
    if isinstance(potential, Mapping):
        parts.append(_potential(potential))
    return ", ".join(parts)


def _sigma(ndem: Mapping[str, Any]) -> list[str]:
    low, high = ndem.get("sigma_min"), ndem.get("sigma_max")
    if high is None:
        return []
    if low is None or isinstance(low, Mapping) or isinstance(high, Mapping):
        known = (("sigma_min", low), ("sigma_max", high))
        return [f"{key} {over_training(v, ' Å')}" for key, v in known if v is not None]
    return [f"sigma {over_training(low)} to {over_training(high, ' Å')}"]


def _potential(potential: Mapping[str, Any]) -> str:
    name = str(potential.get("spec") or potential.get("name") or "not recorded").partition(":")
    text = f"potential {name[2] or name[0]}"
    package = " ".join(str(potential[k]) for k in ("package", "version") if potential.get(k))
    text += f" ({package})" if package else ""
    error = potential.get("relative_error")
    if isinstance(error, (int, float)):
        return f"{text}, relative error of its force changes {100 * error:.3g} %"
    return f"{text}, relative error of its force changes not known"


def over_training(value: Any, unit: str = "") -> str:
    """A setting as text: a number, or the points of a schedule."""
    if isinstance(value, Mapping):
        points = sorted(value.items(), key=lambda point: _number(point[0]))
        parts = [f"{over_training(v, unit)} at {100 * _number(when):g} %" for when, v in points]
        return f"{', '.join(parts)} of training"
    return f"{value:g}{unit}" if isinstance(value, (int, float)) else str(value)


def sigma_range(ndem: Mapping[str, Any]) -> tuple[float, float] | None:
    """Smallest and largest sigma over all of training, Angstrom; None if unknown."""
    found = []
    for key in ("sigma_min", "sigma_max"):
        value = ndem.get(key)
        values = list(value.values()) if isinstance(value, Mapping) else [value]
        if not values or not all(isinstance(v, (int, float)) for v in values):
            return None
        found.append(values)
    return min(found[0]), max(found[1])


def _number(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return 0.0
