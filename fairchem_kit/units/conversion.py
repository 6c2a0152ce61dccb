"""Conversion between the units of energies and forces, and their names within metrics."""

from __future__ import annotations

from ase import units as ase_units

from fairchem_kit.data.units import IN_EV
from fairchem_kit.errors import ConfigError

_ENERGY = {
    **IN_EV,
    "meV": 1e-3,
    "Ha": ase_units.Hartree,
}  # in eV
_IN_EV = {**_ENERGY, **{f"{name}/A": value for name, value in _ENERGY.items()}}


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


def is_convertible(unit: str) -> bool:
    """Whether it is a unit of energy or force that :func:`conversion` knows."""
    return unit in _IN_EV


def label(unit: str) -> str:
    """A unit as part of a metric's name: kcal/mol/A -> kcal_per_mol_A, a0^3 -> a0_3."""
    head, *below = unit.split("/")
    name = head if not below else f"{head}_per_{'_'.join(below)}"
    return name.replace("^", "_").replace(" ", "_")
