"""Units of the labels of a data set, from its dataset.json."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import DataError
from .staging import DATASET_FILE, read_json

#: units of ``ndem data ase`` and of OC20
DEFAULT = {"y": "eV", "force": "eV/A", "pos": "A", "cell": "A"}
#: value of an energy unit in eV, as ase.units (importing ASE takes too long for a command's help)
IN_EV = {"eV": 1.0, "kcal/mol": 0.04336410390059322, "kJ/mol": 0.010364269574711572}


def split_folder(path: Path) -> Path:
    """The folder of a split, or of one of its files, whose parent may have a dataset.json.

    It may be a link into another data set: then the folder that it points to.
    """
    folder = Path(os.path.abspath(path.parent if path.is_file() else path))
    known = any((place / DATASET_FILE).is_file() for place in (folder, folder.parent))
    return folder if known else folder.resolve()


def units_of(path: Path) -> dict[str, str]:
    """The units of the data set to which a split or one of its files belongs.

    Args:
        path: directory of a split, or an LMDB file in it.

    Returns:
        By name of the field; ``DEFAULT`` if the data set has no dataset.json from these tools.
    """
    try:
        stored = read_json(split_folder(path).parent / DATASET_FILE).get("units")
    except DataError:
        stored = None
    return dict(stored) if isinstance(stored, dict) else dict(DEFAULT)


def force_in_ev(units: dict[str, str]) -> float:
    """The force unit in eV/A; 1 for an unknown one."""
    return IN_EV.get(units.get("force", "eV/A").removesuffix("/A"), 1.0)
