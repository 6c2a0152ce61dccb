"""How well the change of forces is predicted, over pairs of near frames of the data.

Over pairs (X1, X2) of one system with dX = X2 - X1 and dF = F(X2) - F(X1):

    isotropic      dF ~ -c dX            Eq. 16, the best c by least squares
    calculator T   dF ~ s [T(X2) - T(X1)]   the best s by least squares

and the error is |dF_predicted - dF| / |dF|, norms over all free atoms of all pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from fairchem_kit.data.errors import DataError
from fairchem_kit.data.records import Structure

from .pairs import Pair

#: largest relative error of a calculator whose changes of forces can serve as labels
USABLE = 0.5
_BINS = 4  # of displacement
_MIN_ATOMS = 10  # of an element, to report it separately


@dataclass(frozen=True)
class Agreement:
    """How well a predictor gives the change of forces.

    Attributes:
        name: of the predictor. pairs: number of pairs. scale: s or c, by least squares.
        relative_error: with that scale. unscaled_error: with s = 1 (calculators only).
        forces_error: |T - F| / |F| of the calculator's forces themselves.
        by_displacement: rows (from, to, pairs, relative error); A, rms over the free atoms.
        by_element: symbol -> relative error. by_system: sid -> relative error.
        median: over pairs.
    """

    name: str
    pairs: int
    scale: float
    relative_error: float
    unscaled_error: float | None
    forces_error: float | None
    median: float
    by_displacement: list[tuple[float, float, int, float]] = field(default_factory=list)
    by_element: dict[str, float] = field(default_factory=dict)
    by_system: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def isotropic(structures: Sequence[Structure], pairs: Sequence[Pair]) -> Agreement:
    """Eq. 16 with the best c for all pairs; ``scale`` is c in the data's energy unit / A^2."""
    return agreement(
        "isotropic c", structures, pairs, [-pair.moved[pair.free] for pair in pairs], None
    )


def agreement_of(
    name: str,
    structures: Sequence[Structure],
    pairs: Sequence[Pair],
    forces: Callable[[int], np.ndarray],
) -> Agreement:
    """Compare a calculator's or model's change of forces with that of the data.

    Args:
        name: for the table.
        forces: function from the index of a structure to its (N, 3) forces, in the data's unit;
            called once for each.

    Raises:
        DataError: all forces of these frames are zero.
    """
    used = sorted({i for pair in pairs for i in (pair.first, pair.second)})
    known = {index: forces(index) for index in used}
    predicted = [pair.change(known[pair.first], known[pair.second]) for pair in pairs]
    off = sum(_square((known[i] - structures[i].forces)[structures[i].free]) for i in used)
    size = sum(_square(structures[i].forces[structures[i].free]) for i in used)
    if not size:
        raise DataError(
            f"{structures[used[0]].file}: the forces of all near frames are 0, so nothing can be "
            "compared with them; were forces computed?"
        )
    return agreement(name, structures, pairs, predicted, float(np.sqrt(off / size)))


def force_changes(structures: Sequence[Structure], pairs: Sequence[Pair]) -> list[np.ndarray]:
    """dF of each pair on its free atoms, (n, 3), from the labels."""
    return [
        pair.change(structures[pair.first].forces, structures[pair.second].forces) for pair in pairs
    ]


def relative(wrong: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> float:
    """|wrong| / |right|, norms over all arrays together; 0 if ``right`` is zero."""
    size = sum(map(_square, right))
    return float(np.sqrt(sum(map(_square, wrong)) / size)) if size > 0 else 0.0


def _square(values: np.ndarray) -> float:
    return float(np.square(values).sum())


def agreement(
    name: str,
    structures: Sequence[Structure],
    pairs: Sequence[Pair],
    predicted: list[np.ndarray],
    forces_error: float | None,
) -> Agreement:
    """Compare changes of forces with those of the data.

    Args:
        predicted: (n, 3) on the free atoms of each pair, in the data's unit.
        forces_error: of the predictor's forces themselves, if known.
    """
    from ase.data import chemical_symbols

    true = force_changes(structures, pairs)
    against = sum(float((p * t).sum()) for p, t in zip(predicted, true))
    own = sum(map(_square, predicted))
    scale = against / own if own > 0 else 0.0
    errors = [scale * p - t for p, t in zip(predicted, true)]
    unscaled = [p - t for p, t in zip(predicted, true)]

    per_pair = np.array([relative([e], [t]) for e, t in zip(errors, true)])
    numbers = [structures[pair.first].numbers[pair.free] for pair in pairs]
    by_element = {}
    for z in np.unique(np.concatenate(numbers)):
        if sum(int((n == z).sum()) for n in numbers) >= _MIN_ATOMS:
            of = [(e[n == z], t[n == z]) for e, t, n in zip(errors, true, numbers)]
            by_element[chemical_symbols[z]] = relative(*zip(*of))
    by_system = {}
    for sid in dict.fromkeys(structures[pair.first].sid for pair in pairs):
        here = [k for k, pair in enumerate(pairs) if structures[pair.first].sid == sid]
        by_system[str(sid)] = relative([errors[k] for k in here], [true[k] for k in here])
    return Agreement(
        name=name,
        pairs=len(pairs),
        scale=scale,
        relative_error=relative(errors, true),
        unscaled_error=None if forces_error is None else relative(unscaled, true),
        forces_error=forces_error,
        median=float(np.median(per_pair)),
        by_displacement=_by_displacement(pairs, errors, true),
        by_element=by_element,
        by_system=by_system,
    )


def _by_displacement(
    pairs: Sequence[Pair],
    errors: list[np.ndarray],
    true: list[np.ndarray],
) -> list[tuple[float, float, int, float]]:
    """Rows for equal numbers of pairs, from small to large displacements."""
    order = np.argsort([pair.rms for pair in pairs])
    rows = []
    for part in np.array_split(order, min(_BINS, len(pairs))):
        sizes = [pairs[k].rms for k in part]
        error = relative([errors[k] for k in part], [true[k] for k in part])
        rows.append((min(sizes), max(sizes), len(part), error))
    return rows
