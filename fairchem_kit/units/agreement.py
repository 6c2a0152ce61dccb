"""Whether the labels of a data set are in the units of a model's outputs.

Data say their units in dataset.json, a configuration in ``outputs.X.unit``. Where these differ,
errors would be wrong by the ratio without any other sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fairchem_kit.data.split_record import SplitRecord
from fairchem_kit.units.columns import ENERGY, FORCES, data_unit
from fairchem_kit.units.conversion import conversion, is_convertible

_FIELDS = {ENERGY: "y", FORCES: "force"}  # names in dataset.json, where these are not the output's


class Difference(NamedTuple):
    """An output, its units in the data and in the configuration, and the factor from one to the
    other."""

    output: str
    data: str
    model: str
    factor: float


def differences(
    outputs: Mapping[str, Mapping[str, Any]], record: SplitRecord
) -> tuple[Difference, ...]:
    """Outputs whose unit is not that of a split's labels.

    Only units of energy and force are compared; others may be written in several ways.

    Raises:
        ConfigError: an energy where the other is a force.
    """
    units = record.units or {}
    found = []
    for name, output in outputs.items():
        has, wants = units.get(_FIELDS.get(name, name)), data_unit(name, output)
        if has != wants and is_convertible(str(has)) and is_convertible(wants):
            found.append(
                Difference(name, has, wants, conversion(has, wants, f"outputs.{name}.unit"))
            )
    return tuple(found)
