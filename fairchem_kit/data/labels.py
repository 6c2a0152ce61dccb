"""Finding the energy and forces of an ASE frame, under names given by the user, and checking
them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fairchem_kit.words import counted

from .errors import FrameError

if TYPE_CHECKING:
    from ase import Atoms

#: records and batches are float32
LARGEST = float(np.finfo(np.float32).max)


def energy_of(atoms: Atoms, key: str | None) -> float:
    """The energy of a frame, eV.

    Args:
        atoms: the frame. key: in ``atoms.info`` or the calculator's results; None: ASE's energy.

    Raises:
        FrameError: there is none, or it is not one finite number.
    """
    results = _results(atoms)
    value = results.get("energy") if key is None else _first(key, atoms.info, results)
    if value is None:
        raise FrameError(
            f"no energy{'' if key is None else f' under {key!r}'} (the frame has: "
            f"{sorted({*results, *atoms.info}) or 'no labels at all'}); name it with --energy-key"
        )
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
        raise FrameError(f"the energy is {_shown(value)}, which is not one number in eV")
    if isinstance(value, np.complexfloating) or not abs(float(value)) <= LARGEST:
        raise FrameError(f"the energy is {value}")
    return float(value)


def forces_of(atoms: Atoms, key: str | None) -> np.ndarray:
    """(N, 3) float64 forces of a frame, eV/A.

    Args:
        atoms: the frame. key: in ``atoms.arrays``, ``atoms.info`` (where the data of a database row
            are) or the calculator's results; None: ASE's forces.

    Raises:
        FrameError: there are none, or not three finite numbers for each atom.
    """
    results = _results(atoms)
    value = results.get("forces") if key is None else _first(key, atoms.arrays, atoms.info, results)
    if value is None:
        raise FrameError(
            f"no forces{'' if key is None else f' under {key!r}'} (the frame has: "
            f"{sorted({*results, *atoms.arrays})}); name them with --forces-key"
        )
    try:
        forces = np.asarray(value)
    except ValueError:  # lists of different lengths
        raise FrameError("the forces are not a table of three numbers per atom") from None
    if forces.shape != (len(atoms), 3):
        raise FrameError(f"forces of shape {forces.shape} for {counted(len(atoms), 'atom')}")
    if forces.dtype.kind not in "iuf":
        first = _shown(forces.reshape(-1)[0])
        raise FrameError(f"the forces are not numbers in eV/A, the first is {first}")
    forces = forces.astype(np.float64)
    bad = np.flatnonzero(~(np.abs(forces) <= LARGEST).all(axis=1))
    if len(bad):
        raise FrameError(
            f"NaN or infinite forces on {len(bad)} of {counted(len(atoms), 'atom')}, first on "
            f"atom {bad[0]}"
        )
    return forces


def _results(atoms: Atoms) -> Mapping[str, Any]:
    return atoms.calc.results if atoms.calc is not None else {}


def _first(key: str, *places: Mapping[str, Any]) -> Any:
    """The first value under a key that is not None."""
    return next((place[key] for place in places if place.get(key) is not None), None)


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple, np.ndarray)):
        return f"a list of {counted(len(value), 'value')}"
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= 40 else f"{text[:37]}..."
