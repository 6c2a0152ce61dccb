"""What a calculator gets wrong on the data in a regular way, as an energy of pairs and triples.

A calculator from another level of theory has, for example, all its bonds a little too stiff. So the
difference of the forces

    F_DFT(X) - s T(X) ~ -grad V(X)

is fitted by ridge regression with an energy V that is linear in its coefficients (bodies.py), and
s T(X) - grad V(X) takes the place of s T(X). Whether that is better, whether V has triples and how
fine they are, and the ridge are decided on pairs of near frames that were left out of the fit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from fairchem_kit.calculators.potential import Potential
from fairchem_kit.data.errors import DataError
from fairchem_kit.data.records import Structure

from .bodies import Pairs, Triples
from .measure import relative
from .pairs import Pair

MOST_FRAMES = 200  # that are fitted
FEWEST_PAIRS = 5  # of frames, without which no fit can be judged
_MOST_COEFFICIENTS = 2000
_WIDTHS = (None, 0.75, 0.5)  # A, of triples
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # A^-2
_FOLDS = 5
_GOOD_ENOUGH = 0.01  # an error that needs no correction
_WORTHWHILE = 0.95  # of the error without it


@dataclass(frozen=True)
class Correction:
    """V(X), by which s T(X) is corrected.

    Attributes:
        elements: atomic numbers. coefficients: eV.
        triples: A, width of the radial functions of triples; None: V has pairs only.
        ridge: of the fit. frames: that were fitted.
        error, error_without: relative error of the change of forces over pairs left out of the
            fit, and of s T alone over the same pairs.
    """

    elements: Sequence[int]
    triples: float | None
    coefficients: Sequence[float]
    ridge: float
    frames: int
    error: float
    error_without: float

    def __call__(
        self, structure: Structure, eps: np.ndarray | None = None
    ) -> tuple[float, np.ndarray]:
        """V in eV and its (N, 3) forces in eV/A on the structure, or displaced by eps.

        Raises:
            DataError: an element that no fitted frame had.
        """
        other = sorted({int(z) for z in structure.numbers} - set(self.elements))
        if other:
            raise DataError(
                f"{structure.where}: the energy that was fitted to the data does not know element "
                f"{chemical_symbols[other[0]]}, which no fitted frame had"
            )
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
        return "pairs" if self.triples is None else "pairs and triples"

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


def seconds(structure: Structure) -> float:
    """Time of V on a structure, before one has been fitted; the first call is not counted."""
    bases = _bases(tuple(sorted(set(structure.numbers.tolist()))), _WIDTHS[-1])
    times = []
    for _ in range(4):
        began = time.perf_counter()
        for basis in bases:
            basis.terms(structure).energy_and_forces(np.zeros(basis.size))
        times.append(time.perf_counter() - began)
    return float(np.median(times[1:]))


def frames_to_fit(structures: Sequence[Structure], pairs: Sequence[Pair]) -> list[int]:
    """The frames of the pairs, and others with forces, spread evenly, up to ``MOST_FRAMES``.

    Then a frame of each element that these lack: V must know all elements of the data.
    """
    labelled = [i for i, structure in enumerate(structures) if structure.forces is not None]
    chosen = dict.fromkeys(i for pair in pairs for i in (pair.first, pair.second))
    for index in labelled[:: max(1, len(labelled) // MOST_FRAMES)]:
        if len(chosen) < MOST_FRAMES:
            chosen[index] = None
    known = {int(z) for index in chosen for z in structures[index].numbers}
    for index in labelled:
        elements = {int(z) for z in structures[index].numbers}
        if not elements <= known:
            chosen[index] = None
            known |= elements
    return list(chosen)


def fit_correction(
    structures: Sequence[Structure],
    labels: dict[int, np.ndarray],
    scaled: dict[int, np.ndarray],
    pairs: Sequence[Pair],
) -> tuple[Correction, list[np.ndarray]] | None:
    """The best correction; None if none is needed, or none makes the change of forces better.

    Args:
        structures: of the data. labels: index -> (N, 3) F_DFT, eV/A. scaled: the same of s T. Both
            have at least the frames of the pairs.
        pairs: of near frames.

    Returns:
        The correction, and the change of s T + V of each pair, left out of the fit: (n, 3) on the
        free atoms, eV/A.
    """
    if len(pairs) < FEWEST_PAIRS:
        return None
    true = [p.change(labels[p.first], labels[p.second]) for p in pairs]
    own = [p.change(scaled[p.first], scaled[p.second]) for p in pairs]
    if relative([o - t for o, t in zip(own, true)], true) < _GOOD_ENOUGH:
        return None
    elements = tuple(sorted({int(z) for i in labels for z in structures[i].numbers}))
    fits = [_Fit(structures, labels, scaled, pairs, elements, width) for width in _WIDTHS]
    found = [fit.best() for fit in fits if fit.size <= _MOST_COEFFICIENTS]
    best = min(found, key=lambda each: each[0].error, default=None)
    if best is not None and best[0].error < _WORTHWHILE * best[0].error_without:
        return best
    return None


def _bases(elements: tuple[int, ...], triples: float | None) -> list[Pairs | Triples]:
    pairs = Pairs(elements)
    return [pairs] if triples is None else [pairs, Triples(elements, width=triples)]


class _Fit:
    """Ridge regression on the forces of frames, with and without the frames of some pairs."""

    def __init__(
        self,
        structures: Sequence[Structure],
        labels: dict[int, np.ndarray],
        scaled: dict[int, np.ndarray],
        pairs: Sequence[Pair],
        elements: tuple[int, ...],
        triples: float | None,
    ) -> None:
        self.structures, self.labels, self.scaled = structures, labels, scaled
        self.pairs, self.elements, self.triples = pairs, elements, triples
        self.bases = _bases(elements, triples)
        self.size = sum(basis.size for basis in self.bases)

    def best(self) -> tuple[Correction, list[np.ndarray]]:
        """The coefficients from all frames, with the ridge that is best on left-out pairs; and the
        change of s T + V of each pair, left out of the fit."""
        tested = {i for pair in self.pairs for i in (pair.first, pair.second)}
        square, against, rows = np.zeros((self.size, self.size)), np.zeros(self.size), {}
        for index in self.labels:
            here = self._rows(index)
            square += here.T @ here
            against += here.T @ self._missing(index)
            if index in tested:
                rows[index] = here
        changes = self._left_out(square, against, rows)
        ridge = min(changes, key=lambda each: self._error(changes[each]))
        without = [self._change(pair, {}) for pair in self.pairs]
        found = Correction(
            elements=self.elements,
            triples=self.triples,
            coefficients=_solve(square, against, ridge).tolist(),
            ridge=ridge,
            frames=len(self.labels),
            error=self._error(changes[ridge]),
            error_without=self._error(without),
        )
        return found, changes[ridge]

    def _left_out(
        self, square: np.ndarray, against: np.ndarray, rows: dict[int, np.ndarray]
    ) -> dict[float, list[np.ndarray]]:
        """For each ridge the change of s T + V of each pair, left out of its own fit."""
        changes = {ridge: [np.zeros(0)] * len(self.pairs) for ridge in _RIDGES}
        for fold in range(_FOLDS):
            held = self.pairs[fold::_FOLDS]
            own = [i for pair in held for i in (pair.first, pair.second)]
            rest = square - sum(rows[i].T @ rows[i] for i in own)
            goal = against - sum(rows[i].T @ self._missing(i) for i in own)
            for ridge in _RIDGES:
                coefficients = _solve(rest, goal, ridge)
                pushes = {i: rows[i] @ coefficients for i in own}
                changes[ridge][fold::_FOLDS] = [self._change(pair, pushes) for pair in held]
        return changes

    def _change(self, pair: Pair, pushes: dict[int, np.ndarray]) -> np.ndarray:
        """(n, 3) change of s T + V; ``pushes``: forces of V on the free atoms, flat."""
        both = []
        for index in (pair.first, pair.second):
            forces = self.scaled[index].copy()
            if index in pushes:
                forces[self.structures[index].free] += pushes[index].reshape(-1, 3)
            both.append(forces)
        return pair.change(*both)

    def _error(self, changes: Sequence[np.ndarray]) -> float:
        """|dF_predicted - dF_DFT| / |dF_DFT| over all pairs."""
        true = [p.change(self.labels[p.first], self.labels[p.second]) for p in self.pairs]
        return relative([c - t for c, t in zip(changes, true)], true)

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
