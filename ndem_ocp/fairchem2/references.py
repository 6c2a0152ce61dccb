"""Energy references, checked before the first step.

If an element has no reference, or if references are from another method, thousands of eV remain in
the energy target. Training then mostly fits a constant, and fine-tuning destroys what the model had
learned. A least-squares fit on some training structures shows how much better references could be.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase.data import chemical_symbols
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.units.mlip_unit.mlip_unit import Task
from torch.utils.data import Dataset

from fairchem_kit.errors import UserError
from fairchem_kit.words import counted
from ndem_ocp.fairchem2.section import ENERGY

LOOKED_AT = 200  # structures
LARGE = 1.0  # eV per atom, rms of energies minus references that is acceptable
TIMES = 5.0  # references are wrong if fitted ones are better by this factor


class ReferencesError(UserError, ValueError):
    """Element references that do not fit the energies; the message says by how much."""


def check_references(dataset: Dataset, tasks: Sequence[Task], count: int = LOOKED_AT) -> None:
    """Check that the element references of energy tasks fit the training data.

    Args:
        dataset: that of the training data loader. tasks: all tasks.
        count: number of structures to read, evenly spaced.

    Raises:
        ReferencesError: for an element without a reference, or if fitted ones are much better.
    """
    tasks = [task for task in tasks if task.property == ENERGY and not task.inference_only]
    if not tasks or len(dataset) == 0:
        return
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int))
    structures = [dataset[int(row)] for row in rows]
    for task in tasks:
        own = [s for s in structures if _data_set(s) in task.datasets and task.name in s]
        if own:
            _check(task, own)


def _check(task: Task, structures: list) -> None:
    numbers = [s.atomic_numbers.numpy() for s in structures]
    energies = np.array([float(s[task.name]) for s in structures])
    usable = np.isfinite(energies)
    elements = np.unique(np.concatenate(numbers))
    references = task.element_references
    given = np.zeros(int(elements.max()) + 1)
    if references is not None:
        values = references.element_references.detach().cpu().double().numpy()
        if len(values) <= elements.max():
            beyond = _symbols(elements[elements >= len(values)])
            raise ReferencesError(
                f"task {task.name}: its element references end at atomic number "
                f"{len(values) - 1}, but the training data has {beyond}: "
                "give one number for each atomic number from 0."
            )
        given = values
        missing = [z for z in elements if given[z] == 0.0]
        if missing and len(missing) < len(elements):
            raise ReferencesError(
                f"task {task.name}: {_symbols(missing)} in the training data have no element "
                "reference (0 eV), but the other elements have one: fit them on this data, as "
                "create_uma_finetune_dataset does, or set ndem.check_references: false."
            )
    counts = np.array([[np.sum(n == z) for z in elements] for n in numbers], float)[usable]
    atoms = counts.sum(1)
    left = energies[usable] - counts @ given[elements]
    if len(left) < 2:
        return
    fit = left - counts @ np.linalg.lstsq(counts, left, rcond=None)[0]
    now, best = (float(np.sqrt(np.mean((x / atoms) ** 2))) for x in (left, fit))
    if now > LARGE and now > TIMES * best:
        what = "its element references leave" if references is not None else "without references"
        raise ReferencesError(
            f"task {task.name}: {what} {now:.3g} eV per atom (rms over "
            f"{counted(len(left), 'training structure')}), but references fitted to these would "
            f"leave {best:.3g}. They seem to be from another method or data set: fit "
            "references (create_uma_finetune_dataset does), or set ndem.check_references: false "
            "to train with these."
        )


def _data_set(structure: AtomicData) -> str:
    """The name of its data set, which a transform may have changed from a list to a string."""
    name = structure.dataset
    return name if isinstance(name, str) else name[0]


def _symbols(numbers: Sequence[int]) -> str:
    return ", ".join(chemical_symbols[int(z)] for z in numbers)
