"""What fairchem 2 wants to know of a data set: a file for the ``data`` group of its configurations.

dataset_name, train_src, val_src (or another split's), elem_refs, normalizer_rmsd
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .plan import Plan
from .reference import fit_linear
from .split import TRAIN

ELEMENTS = 100  # as fairchem's models: atomic numbers 0 to 99


def write_settings(
    path: Path, out: Path, plan: Plan, statistics: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write the file; where a split is added to a data set, its entry is added to the old ones.

    Element references (eV, by atomic number) are fitted on the energies of ``train`` as they are
    written, the normalizer is the root mean square of the force components on its free atoms.

    Args:
        path: the new file. out: the data set's final place. plan: the conversion.
        statistics: of its splits.
    """
    old = out / path.name
    settings = yaml.safe_load(old.read_text(encoding="utf-8")) if old.is_file() else {}
    for split in statistics:
        settings[f"{split}_src"] = str(out.resolve() / split)
    if TRAIN in statistics:
        rows = np.flatnonzero(plan.split == TRAIN)
        table = plan.table.select(plan.split == TRAIN)
        energy = table.energy - plan.reference.energy[rows]
        references, _ = fit_linear(table.compositions, table.composition, energy)
        settings["elem_refs"] = [round(float(e), 6) for e in references[:ELEMENTS]]
        settings["normalizer_rmsd"] = statistics[TRAIN]["force_rms"]
    text = "# For fairchem 2: a file of the group `data` (docs/fairchem2.md). eV, eV/A.\n"
    text += yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=100)
    path.write_text(text, encoding="utf-8")
