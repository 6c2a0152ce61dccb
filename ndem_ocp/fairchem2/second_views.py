"""Second views with labels for fairchem 2, from the same file as for fairchem 1.10.

Views are found by a digest of the structure as it is in its record. fairchem 2 wraps positions into
the cell when it reads a record, so a structure in a batch may have another digest. Then its record
is looked up in the data set. Displacements and changes of forces are the same for both.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.datasets.base_dataset import Subset
from fairchem.core.datasets.mt_concat_dataset import ConcatDataset
from torch.utils.data import Dataset

from fairchem_kit.data.errors import DataError
from fairchem_kit.data.frames import fixed_atoms
from fairchem_kit.data.positions import near_origin
from fairchem_kit.words import counted
from ndem_ocp.fairchem2.objectives import restricted
from ndem_ocp.method import NDeMSettings, Noise
from ndem_ocp.second_views.sidecar import Views, structure_digest
from ndem_ocp.second_views.source import ViewSource

_LOOKED_AT = 50  # structures of each data set that are checked at the start


class AseViewSource(ViewSource):
    """Second views for the data sets of a data loader, in eV and eV/A.

    Args:
        path: a file made by ``ndem data second-views``. dataset: that of the training data loader.
        settings: which views to draw, and how often.

    Raises:
        DataError: if it is another kind of file, or was made for other records.
    """

    def __init__(self, path: str | Path, dataset: Dataset, settings: NDeMSettings) -> None:
        self._open(path, settings, unit=1.0)
        self._parts = _parts(dataset)
        self._records: dict[bytes, bytes] | None = None
        known = {name: self._known(part) for name, part in self._parts.items()}
        for name, (found, looked_at) in known.items():
            if 0 < found < looked_at:
                raise DataError(
                    f"{path} has second views for {found} of the first "
                    f"{counted(looked_at, 'structure')} of {name}: records were changed or added "
                    "later. Run `ndem data second-views` again"
                )
        self._covered = {name for name, (found, _) in known.items() if found}
        if not self._covered:
            raise DataError(
                f"{path} has no second views for {', '.join(known)}: it was made for other records "
                f"({self.sidecar.meta.get('data')}). Run `ndem data second-views` for these"
            )
        for name in sorted(set(known) - self._covered):
            logging.info("ndem: %s has no second views for the data set %s.", path, name)

    def draw(self, batch: AtomicData, generator: torch.Generator, progress: float = 0.0) -> Noise:
        """As :meth:`ViewSource.draw`; structures of data sets without views are not displaced."""
        noise = super().draw(batch, generator, progress)
        covered = torch.tensor([name in self._covered for name in batch.dataset_name])
        return restricted(noise, covered, batch.batch.cpu())

    def _views(self, batch: Any, number: int, here: slice) -> Views | None:
        if batch.dataset_name[number] not in self._covered:
            return None
        return super()._views(batch, number, here)

    def _recorded(self, key: bytes) -> bytes:
        if self._has(key):
            return key
        if self._records is None:
            logging.info("ndem: reading the data sets once, to find records of wrapped structures.")
            self._records = {
                shown_digest(part[index]): record_digest(part, index)
                for name, part in self._parts.items()
                if name in self._covered
                for index in range(len(part))
            }
        return self._records.get(key, key)

    def _known(self, part: Dataset) -> tuple[int, int]:
        """How many of the first structures of a data set have views, and how many were checked."""
        count = min(_LOOKED_AT, len(part))
        return sum(self._has(record_digest(part, index)) for index in range(count)), count

    def _has(self, key: bytes) -> bool:
        try:
            self.sidecar.get(key)
        except KeyError:
            return False
        return True


def shown_digest(structure: AtomicData) -> bytes:
    """The digest of a structure as the model sees it in fairchem 2."""
    return structure_digest(
        structure.atomic_numbers.numpy(),
        structure.pos.numpy(),
        structure.cell.numpy(),
        structure.fixed.numpy(),
    )


def record_digest(part: Dataset, index: int) -> bytes:
    """The digest of a structure as it is in its record, which ``ndem data second-views`` uses.

    Args:
        part: a data set of ASE structures. index: that of the structure.

    Raises:
        DataError: for another kind of data set.
    """
    while isinstance(part, Subset):
        part, index = part.dataset, int(part.indices[index])
    if not hasattr(part, "get_atoms"):
        raise DataError(
            f"second views need a data set of ASE structures (format: ase_db), not "
            f"{type(part).__name__}"
        )
    atoms = part.get_atoms(index)
    cell = np.array(atoms.get_cell(complete=True), dtype=np.float64)
    positions = near_origin(atoms.get_positions(), cell, np.asarray(atoms.pbc, dtype=bool))
    return structure_digest(atoms.numbers, positions, cell, fixed_atoms(atoms))


def _parts(dataset: Dataset) -> dict[str, Dataset]:
    """{name as in a batch, such as ``oc20.train``: data set}."""
    if not isinstance(dataset, ConcatDataset):
        raise DataError(
            f"second views need fairchem's create_concat_dataset, not {type(dataset).__name__}"
        )
    return dict(zip(dataset.dataset_names, dataset.datasets))
