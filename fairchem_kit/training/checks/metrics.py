"""Losses and metrics that do not exist, or that are for outputs that do not exist."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

from fairchem.core.common.registry import registry
from fairchem.core.modules import evaluator

from fairchem_kit.training.checks import known_keys
from fairchem_kit.training.checks.messages import hint, shown, unknown_keys
from fairchem_kit.training.checks.sections import output_names
from fairchem_kit.training.checks.values import number_problems

_LOSSES = "it must be a list such as [{energy: {fn: mae, coefficient: 1}}]."
_NO_METRICS = ("metrics_dict", "min_diff", "wraps")  # other functions in that module


def known_metrics() -> list[str]:
    """Metrics of fairchem's evaluator, which are functions in its module."""
    found = vars(evaluator).items()
    return [name for name, value in found if inspect.isfunction(value) and name not in _NO_METRICS]


def unreadable_losses(losses: Any, task: Any) -> str | None:
    """What is wrong with ``loss_functions`` if fairchem would fail on it before any check of ours.

    Args:
        losses: the section; {} if there is none. task: the section ``task``. With ``dataset`` in
            it, a configuration without losses is one of fairchem's older layout.
    """
    if losses is None or (not losses and "dataset" not in (task or {})):
        return "`loss_functions` is missing or empty; " + _LOSSES
    if not isinstance(losses, (list, tuple, Mapping)):
        return f"`loss_functions` is {shown(losses)}; " + _LOSSES
    return None


def loss_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """``loss_functions``: a list of {output: {fn, coefficient, reduction}}."""
    losses, outputs = config.get("loss_functions"), output_names(config.get("outputs"))
    if not isinstance(losses, (list, tuple)) or not losses:
        yield (
            f"loss_functions must be a list such as [{{energy: {{fn: mae, coefficient: 1}}}}], not "
            f"{shown(losses)}."
        )
        return
    for entry in losses:
        if not isinstance(entry, Mapping):
            yield f"loss_functions: each entry is {{output: {{fn, coefficient}}}}, not {entry!r}."
            continue
        for target, loss in entry.items():
            where = f"loss_functions.{target}"
            if target not in outputs:
                yield f"{where}: there is no output {target!r}. {hint(target, outputs)}"
            yield from unknown_keys(loss, known_keys.LOSS, where)
            if isinstance(loss, Mapping):
                yield from _loss_value_problems(loss, where)


def _loss_value_problems(loss: Mapping[str, Any], where: str) -> Iterator[str]:
    names = registry.mapping["loss_name_mapping"]
    fn, coefficient = loss.get("fn"), loss.get("coefficient")
    if fn is None:
        yield f"{where}.fn is missing. Valid: {', '.join(names)}."
    elif fn not in names and not (isinstance(fn, str) and "." in fn):
        yield f"{where}.fn = {shown(fn)} is not a loss. {hint(fn, names)}"
    if coefficient is None:
        yield f"{where}.coefficient is missing: give the weight of this loss, such as 1."
    else:
        yield from number_problems(coefficient, f"{where}.coefficient", -math.inf, False)
    if loss.get("reduction") not in (None, "mean", "sum"):
        yield f"{where}.reduction = {shown(loss['reduction'])}: fairchem has mean and sum."


def metric_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """``evaluation_metrics``: names of outputs and of metrics."""
    section, outputs = config.get("evaluation_metrics"), output_names(config.get("outputs"))
    yield from unknown_keys(section, known_keys.EVALUATION, "evaluation_metrics")
    metrics = section.get("metrics") if isinstance(section, Mapping) else None
    if metrics is None:
        return
    if not isinstance(metrics, Mapping):
        yield f"evaluation_metrics.metrics must be {{output: [names]}}, not {shown(metrics)}."
        return
    known = known_metrics()
    for target, names in metrics.items():
        where = f"evaluation_metrics.metrics.{target}"
        if target != "misc" and target not in outputs:
            yield f"{where}: there is no output {target!r}. {hint(target, [*outputs, 'misc'])}"
        if not isinstance(names, (list, tuple)):
            yield f"{where} = {shown(names)} must be a list: write [{names}]."
            continue
        for name in names:
            if name not in known:
                yield f"{where}: there is no metric {name!r}. {hint(name, known)}"
                continue
            needs = known_keys.METRIC_NEEDS.get(name)
            if target == "misc" and needs is None:
                yield f"{where}: {name} is a metric of one output; put it under that output."
            lacking = [need for need in needs or () if need not in outputs]
            if lacking:
                yield f"{where}: {name} needs the output {' and '.join(lacking)} under outputs."


def computed_metrics(metrics: Mapping[str, Any], named: Mapping[str, Any]) -> set[str]:
    """Names under which fairchem's evaluator logs metrics.

    Args:
        metrics: the section ``evaluation_metrics.metrics``.
        named: metrics with a unit, from :func:`fairchem_kit.training.units.unit_metrics`.
    """
    computed = {
        f"{target}_{name}" if target not in name and target != "misc" else name
        for target, names in metrics.items()
        for name in names
    }
    return computed | {name for name, (source, _) in named.items() if source in computed}
