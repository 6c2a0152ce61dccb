"""Checks of a record before the model sees it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fairchem_kit.data.record_check import geometry_problem, number_problem, shape_problem
from fairchem_kit.words import counted

from .errors import Refused
from .settings import ReaderSettings

_REQUIRED = ("pos", "atomic_numbers", "natoms")


def check_fields(fields: dict[str, Any], settings: ReaderSettings) -> None:
    """Check one record.

    Args:
        fields: of its Data, under the names of the file.
        settings: thresholds, and how much to check.

    Raises:
        Refused: the first fault.
    """
    if settings.checks == "none":
        return
    for key in _REQUIRED:
        if key not in fields:
            raise Refused("missing field", f"no `{key}`")
    arrays = {key: _array(value) for key, value in fields.items()}
    numeric = {key: array for key, array in arrays.items() if array is not None}
    for key in _REQUIRED:
        if key not in numeric:
            raise Refused("shape", f"`{key}` is not a number or tensor")
    problem = shape_problem(numeric)
    if problem is None:
        count = len(numeric["pos"])
        if count > settings.max_atoms_per_graph:
            limit = settings.max_atoms_per_graph
            raise Refused("size", f"{counted(count, 'atom')} (max_atoms_per_graph is {limit})")
        problem = number_problem(numeric, settings.max_atomic_number)
    if problem is None:
        problem = _geometry(numeric, settings)
    if problem is not None:
        raise Refused(*problem)


def _geometry(arrays: dict[str, np.ndarray], settings: ReaderSettings) -> tuple[str, str] | None:
    full = settings.checks == "full"
    try:
        with np.errstate(all="ignore"):  # numbers can have any size; the result is checked
            return geometry_problem(
                arrays,
                settings.min_distance if full else None,
                settings.cutoff if full else None,
            )
    except (ValueError, np.linalg.LinAlgError, MemoryError) as error:
        return "cell", f"positions and cell do not make a valid geometry ({error})"


def _array(value: Any) -> np.ndarray | None:
    """A number, tensor or list of numbers as an array; None for anything else."""
    if isinstance(value, torch.Tensor):
        if value.dtype == torch.bfloat16:
            value = value.float()
        return value.detach().numpy()
    if isinstance(value, (bool, int, float, np.generic, np.ndarray)):
        array = np.asarray(value)
    elif isinstance(value, (list, tuple)):
        try:
            array = np.asarray(value)
        except ValueError:  # lists of different lengths
            return None
    else:
        return None
    return array if array.dtype.kind in "biufc" else None
