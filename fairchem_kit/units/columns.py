"""Which metrics of an evaluation are in the literature's tables, and in which units.

OC20's tables are in meV and meV/A; without units in the configuration, the data are taken to be in
eV and eV/A as in OC20. Otherwise ``outputs.X.unit`` and ``report_unit`` are used (MD17, QM9).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fairchem_kit.units.conversion import conversion, label

FORCES, ENERGY = "forces", "energy"
EFWT = "energy_forces_within_threshold"


@dataclass(frozen=True)
class Column:
    """One column of the tables.

    Attributes:
        key: its name in JSON and CSV, with the unit in it. heading: for people.
        metric: fairchem's. factor: from its unit to this one's. digits: after the point.
    """

    key: str
    heading: str
    metric: str
    factor: float
    unit: str
    digits: int


def data_unit(name: str, output: Mapping[str, Any]) -> str:
    """The unit of the data and of the model's raw outputs; empty if unknown."""
    unit = output.get("unit")
    if unit is not None:
        return str(unit)
    return {ENERGY: "eV", FORCES: "eV/A"}.get(name, "")


def table_unit(name: str, output: Mapping[str, Any]) -> str:
    """The unit of the output's column."""
    if output.get("report_unit") is not None:
        return str(output["report_unit"])
    unit = data_unit(name, output)
    return {"eV": "meV", "eV/A": "meV/A"}.get(unit, unit)


def forces_in_ev(outputs: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether OC20's EFwT, which is defined in eV and eV/A over free atoms, applies."""
    energy, forces = outputs.get(ENERGY), outputs.get(FORCES)
    return (
        energy is not None
        and forces is not None
        and energy.get("level") == "system"
        and forces.get("level") == "atom"
        and forces.get("eval_on_free_atoms", True)
        and (data_unit(ENERGY, energy), data_unit(FORCES, forces)) == ("eV", "eV/A")
    )


def columns_of(outputs: Mapping[str, Mapping[str, Any]]) -> list[Column]:
    """The columns of an evaluation: MAEs, force cosine, and EFwT if it is defined.

    Raises:
        ConfigError: for a ``report_unit`` to which the unit cannot be converted.
    """
    columns = []
    for name, output in outputs.items():
        have, want = data_unit(name, output), table_unit(name, output)
        factor = conversion(have, want, f"outputs.{name}.report_unit")
        key = f"{name}_mae_{label(want)}" if want else f"{name}_mae"
        title = {FORCES: "force"}.get(name, name)
        heading = f"{title} MAE" + (f" ({want})".replace("/A", "/Å") if want else "")
        columns.append(Column(key, heading, f"{name}_mae", factor, want, _digits(want)))
        if name == FORCES:
            columns.append(
                Column("forces_cosine", "force cosine", "forces_cosine_similarity", 1.0, "1", 4)
            )
    if forces_in_ev(outputs):
        columns.append(Column("efwt_percent", "EFwT (%)", EFWT, 100.0, "%", 2))
    return columns


def _digits(unit: str) -> int:
    return {"meV": 1, "meV/A": 2}.get(unit, 4)
