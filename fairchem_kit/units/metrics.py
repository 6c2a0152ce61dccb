"""Metrics in the units of the literature's tables, named so.

    outputs:
      forces: {..., unit: kcal/mol/A}                  # what the data is in
      gap:    {..., unit: eV, report_unit: meV}        # and what its table is in

adds ``forces_mae_kcal_per_mol_A`` and ``gap_mae_meV`` in addition to fairchem's ``forces_mae`` and
``gap_mae``, in training and validation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fairchem_kit.errors import ConfigError
from fairchem_kit.units.columns import data_unit
from fairchem_kit.units.conversion import conversion, label


def unit_metrics(outputs: dict[str, Any]) -> dict[str, tuple[str, float]]:
    """{metric with its unit: (fairchem's metric, factor)} for the outputs that name a unit.

    Raises:
        ConfigError: for a ``report_unit`` without ``unit``, or one that does not convert.
    """
    named = {}
    for name, output in outputs.items():
        unit, report = output.get("unit"), output.get("report_unit")
        if report is not None and unit is None:
            raise ConfigError(f"outputs.{name}.report_unit needs outputs.{name}.unit beside it.")
        if unit is not None:
            factor = conversion(unit, report or unit, f"outputs.{name}.report_unit")
            named[f"{name}_mae_{label(report or unit)}"] = (f"{name}_mae", factor)
    return named


def add_unit_metrics(metrics: dict[str, Any], named: dict[str, tuple[str, float]]) -> None:
    """Add the named metrics to those that they are made from, in place; sums and means alike."""
    for name, (source, factor) in named.items():
        if source in metrics:
            found = metrics[source]
            metrics[name] = {
                "metric": found["metric"] * factor,
                "total": found["total"] * factor,
                "numel": found["numel"],
            }


def unit_of(metric: str, outputs: Mapping[str, Mapping[str, Any]]) -> str:
    """The unit of a metric with the unit of an output, such as ``forces_mae``; "" for others."""
    found = re.fullmatch(r"(.+?)_(?:mae|rmse)(?:_(.+))?", metric)
    if found is None or found[1] not in outputs:
        return ""
    output = outputs[found[1]]
    own = output.get("report_unit") if found[2] else None
    return str(own) if own is not None else data_unit(found[1], output)
