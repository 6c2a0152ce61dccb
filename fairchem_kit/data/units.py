"""Units of the labels of a data set, from its dataset.json."""

from __future__ import annotations

from pathlib import Path

from .errors import DataError
from .staging import DATASET_FILE, read_json

#: units of ``ndem data ase`` and of OC20
DEFAULT = {"y": "eV", "force": "eV/A", "pos": "A", "cell": "A"}
#: value of an energy unit in eV, as ase.units (importing ASE takes too long for a command's help)
IN_EV = {"eV": 1.0, "kcal/mol": 0.04336410390059322, "kJ/mol": 0.010364269574711572}


def units_of(path: Path) -> dict[str, str]:
    """The units of the data set to which a split or one of its files belongs.

    Args:
        path: directory of a split, or an LMDB file in it.

    Returns:
        By name of the field; ``DEFAULT`` if the data set has no dataset.json from these tools.
    """
    folder = path if path.is_dir() else path.parent
    try:
        stored = read_json(folder.resolve().parent / DATASET_FILE).get("units")
    except DataError:
        stored = None
    return dict(stored) if isinstance(stored, dict) else dict(DEFAULT)


def force_in_ev(units: dict[str, str]) -> float:
    """The force unit in eV/A; 1 for an unknown one."""
    return IN_EV.get(units.get("force", "eV/A").removesuffix("/A"), 1.0)
