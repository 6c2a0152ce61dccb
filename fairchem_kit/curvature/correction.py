"""What a calculator gets wrong on the data in a regular way, as an energy of pairs and triples.

A calculator from another level of theory has, for example, all its bonds a little too stiff. So the
difference of the forces

    F_DFT(X) - s T(X) ~ -grad V(X)

is fitted by ridge regression with an energy V that is linear in its coefficients (bodies.py), and
s T(X) - grad V(X) takes the place of s T(X). Whether that is better, with triples or without, and
with which ridge, is decided on pairs of near frames that were left out of the fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fairchem_kit.calculators.potential import Potential
from fairchem_kit.data.records import Structure

from .bodies import Pairs, Triples
from .measure import Agreement
from .pairs import Pair

MOST_FRAMES = 200  # that are fitted
FEWEST_PAIRS = 5  # of frames, without which no fit can be judged
_MOST_COEFFICIENTS = 2000
_RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # A^-2
_FOLDS = 5
_WORTHWHILE = 0.95  # of the error without it


@dataclass(frozen=True)
class Correction:
    """V(X), by which s T(X) is corrected.

    Attributes:
        elements: atomic numbers. triples: whether V has them. coefficients: eV.
        ridge: of the fit. frames: that were fitted.
        error, error_without: relative error of the change of forces over pairs left out of the
            fit, and of s T alone over the same pairs.
    """

    elements: Sequence[int]
    triples: bool
    coefficients: Sequence[float]
    ridge: float
    frames: int
    error: float
    error_without: float

    def __call__(
        self, structure: Structure, eps: np.ndarray | None = None
    ) -> tuple[float, np.ndarray]:
        """V in eV and its (N, 3) forces in eV/A on the structure, or displaced by eps."""
        energy, forces, begin = 0.0, np.zeros((len(structure.numbers), 3)), 0
        for basis in _bases(tuple(self.elements), self.triples):
            own = np.array(self.coefficients[begin : begin + basis.size])
            part = basis.terms(structure, eps).energy_and_forces(own)
            energy, forces, begin = energy + part[0], forces + part[1], begin + basis.size
        return energy, forces

    def corrected(self, potential: Potential, scale: float) -> Corrected:
        """The calculator T + V / s, whose changes times s are the corrected ones."""
        return Corrected(potential.calculator, self, scale)

    @property
    def bodies(self) -> str:
        """Of what V is a sum."""
        return "pairs and triples" if self.triples else "pairs"

    def as_dict(self) -> dict[str, Any]:
        """For JSON; ``Correction(**d)`` is the way back."""
        return asdict(self)


class Corrected(Potential):
    """An ASE calculator plus V / s."""

    def __init__(self, calculator: Any, correction: Correction, scale: float) -> None:
        super().__init__(calculator)
        self.correction = correction
        self.scale = scale

    def __call__(
        self, structure: Structure, eps: np.ndarray | None = None
    ) -> tuple[float, np.ndarray]:
        energy, forces = super().__call__(structure, eps)
        more, push = self.correction(structure, eps)
        return energy + more / self.scale, forces + push / self.scale


def fit_correction(
    structures: Sequence[Structure],
    labels: dict[int, np.ndarray],
    scaled: dict[int, np.ndarray],
    pairs: Sequence[Pair],
) -> Correction | None:
    """The best correction; None if none makes the change of forces better.

    Args:
        structures: of the data. labels: index -> (N, 3) F_DFT, eV/A. scaled: the same of s T. Both
            have at least the frames of the pairs.
        pairs: of near frames.
    """
    if len(pairs) < FEWEST_PAIRS:
        return None
    elements = tuple(sorted({int(z) for i in labels for z in structures[i].numbers}))
    best: Correction | None = None
    for triples in (False, True):
        fit = _Fit(structures, labels, scaled, pairs, elements, triples)
        if fit.size > _MOST_COEFFICIENTS:
            break
        found = fit.best()
        if best is None or found.error < best.error:
            best = found
    return best if best and best.error < _WORTHWHILE * best.error_without else None


def corrected_error(
    found: Agreement,
    structures: Sequence[Structure],
    pairs: Sequence[Pair],
    forces: Callable[[int], np.ndarray],
    unit: float,
) -> float | None:
    """The relative error that a calculator has with a correction; None if none helps.

    Args:
        found: how well it does without. forces: index -> (N, 3) T in the data's unit.
        unit: of the data's forces, in eV/A.
    """
    pairs = pairs[: MOST_FRAMES // 2]
    used = {i for pair in pairs for i in (pair.first, pair.second)}
    labels = {i: _known(structures[i].forces) * unit for i in used}
    scaled = {i: found.scale * unit * forces(i) for i in used}
    fitted = fit_correction(structures, labels, scaled, pairs)
    return found.relative_error * fitted.error / fitted.error_without if fitted else None


def _known(forces: np.ndarray | None) -> np.ndarray:
    assert forces is not None  # pairs have only frames with forces
    return forces


def _bases(elements: tuple[int, ...], triples: bool) -> list[Pairs | Triples]:
    return [Pairs(elements), Triples(elements)] if triples else [Pairs(elements)]


class _Fit:
    """Ridge regression on the forces of frames, with and without the frames of some pairs."""

    def __init__(
        self,
        structures: Sequence[Structure],
        labels: dict[int, np.ndarray],
        scaled: dict[int, np.ndarray],
        pairs: Sequence[Pair],
        elements: tuple[int, ...],
        triples: bool,
    ) -> None:
        self.structures, self.labels, self.scaled = structures, labels, scaled
        self.pairs, self.elements, self.triples = pairs, elements, triples
        self.bases = _bases(elements, triples)
        self.size = sum(basis.size for basis in self.bases)

    def best(self) -> Correction:
        """The coefficients from all frames, with the ridge that is best on left-out pairs."""
        tested = {i for pair in self.pairs for i in (pair.first, pair.second)}
        square, against, rows = np.zeros((self.size, self.size)), np.zeros(self.size), {}
        for index in self.labels:
            here = self._rows(index)
            square += here.T @ here
            against += here.T @ self._missing(index)
            if index in tested:
                rows[index] = here
        errors = self._left_out(square, against, rows)
        place = int(errors.argmin())
        return Correction(
            elements=self.elements,
            triples=self.triples,
            coefficients=tuple(_solve(square, against, _RIDGES[place]).tolist()),
            ridge=_RIDGES[place],
            frames=len(self.labels),
            error=float(errors[place]),
            error_without=float(np.sqrt(self._wrong(self.pairs, {}) / self._size())),
        )

    def _left_out(
        self, square: np.ndarray, against: np.ndarray, rows: dict[int, np.ndarray]
    ) -> np.ndarray:
        """Relative error of each ridge over all pairs, each left out of its own fit."""
        wrong = np.zeros(len(_RIDGES))
        for fold in range(_FOLDS):
            held = self.pairs[fold::_FOLDS]
            own = [i for pair in held for i in (pair.first, pair.second)]
            rest = square - sum(rows[i].T @ rows[i] for i in own)
            goal = against - sum(rows[i].T @ self._missing(i) for i in own)
            for place, ridge in enumerate(_RIDGES):
                coefficients = _solve(rest, goal, ridge)
                wrong[place] += self._wrong(held, {i: rows[i] @ coefficients for i in own})
        return np.sqrt(wrong / self._size())

    def _wrong(self, pairs: Sequence[Pair], pushes: dict[int, np.ndarray]) -> float:
        """|dF_predicted - dF_DFT|^2 over pairs; ``pushes``: forces of V on free atoms, flat."""
        missing = {}
        for index in (i for pair in pairs for i in (pair.first, pair.second)):
            missing[index] = self.labels[index] - self.scaled[index]
            if index in pushes:
                missing[index][self.structures[index].free] -= pushes[index].reshape(-1, 3)
        return sum(
            float(np.square(pair.change(missing[pair.first], missing[pair.second])).sum())
            for pair in pairs
        )

    def _size(self) -> float:
        """|dF_DFT|^2 over all pairs."""
        return sum(
            float(np.square(p.change(self.labels[p.first], self.labels[p.second])).sum())
            for p in self.pairs
        )

    def _rows(self, index: int) -> np.ndarray:
        """(3 n, P) forces on the n free atoms of a frame per coefficient."""
        structure = self.structures[index]
        each = [basis.terms(structure).forces_of_each(basis.size) for basis in self.bases]
        return np.concatenate(each, axis=2)[structure.free].reshape(-1, self.size)

    def _missing(self, index: int) -> np.ndarray:
        """(3 n,) F_DFT - s T on the n free atoms of a frame."""
        return (self.labels[index] - self.scaled[index])[self.structures[index].free].ravel()


def _solve(square: np.ndarray, against: np.ndarray, ridge: float) -> np.ndarray:
    return np.linalg.solve(square + ridge * np.eye(len(square)), against)
