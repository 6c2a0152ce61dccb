"""Metrics in the units of the literature's tables, named so.

    outputs:
      forces: {..., unit: kcal/mol/A}                  # what the data is in
      gap:    {..., unit: eV, report_unit: meV}        # and what its table is in

adds ``forces_mae_kcal_per_mol_A`` and ``gap_mae_meV`` in addition to fairchem's ``forces_mae`` and
``gap_mae``, in training and validation.
"""

from __future__ import annotations

from typing import Any

from ase import units as ase_units
from fairchem.core.modules.evaluator import Evaluator

from ndem_ocp.data.units import IN_EV
from ndem_ocp.training.checks.names import ConfigError
from ndem_ocp.training.component import Component

_ENERGY = {
    **IN_EV,
    "meV": 1e-3,
    "Ha": ase_units.Hartree,
}  # in eV
_IN_EV = {**_ENERGY, **{f"{name}/A": value for name, value in _ENERGY.items()}}


class UnitMetrics(Component):
    """Adds the metrics in the units that the outputs name."""

    def prepare(self, inference_only: bool) -> None:
        self._named = unit_metrics(self.config.get("outputs") or {})

    def after_metrics(self, metrics: dict[str, Any], evaluator: Evaluator) -> None:
        add_unit_metrics(metrics, self._named)


def conversion(unit: str, report_unit: str, key: str) -> float:
    """Factor from one unit to another.

    Raises:
        ConfigError: naming ``key`` if there is no such conversion.
    """
    if unit == report_unit:
        return 1.0
    same_kind = unit.endswith("/A") == report_unit.endswith("/A")
    if unit not in _IN_EV or report_unit not in _IN_EV or not same_kind:
        raise ConfigError(
            f"{key}: cannot convert {unit!r} to {report_unit!r}. Energies ({', '.join(_ENERGY)}), "
            "and forces (the same with /A), can be converted; other units must be equal."
        )
    return _IN_EV[unit] / _IN_EV[report_unit]


def label(unit: str) -> str:
    """A unit as part of a metric's name: kcal/mol/A -> kcal_per_mol_A, a0^3 -> a0_3."""
    head, *below = unit.split("/")
    name = head if not below else f"{head}_per_{'_'.join(below)}"
    return name.replace("^", "_").replace(" ", "_")


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
