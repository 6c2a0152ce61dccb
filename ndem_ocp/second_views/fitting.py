"""Test a calculator on the data, and fit to them the scale s and the correction V.

Both are judged by the change of forces over pairs of near frames, which is what second views use.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.calculators.nothing import NoPotential
from fairchem_kit.calculators.potential import Potential
from fairchem_kit.curvature.correction import (
    FEWEST_PAIRS,
    MOST_FRAMES,
    Correction,
    fit_correction,
    frames_to_fit,
)
from fairchem_kit.curvature.measure import Agreement, agreement_of
from fairchem_kit.curvature.pairs import DISPLACEMENTS, MOST_READ, Pair, near_pairs
from fairchem_kit.data.errors import DataError
from fairchem_kit.data.records import Structure, iter_structures
from fairchem_kit.data.units import force_in_ev, units_of
from fairchem_kit.words import counted

from .draws import gradient_mismatch

MAX_GRADIENT_MISMATCH = 0.2
SKIP_FAILED = "--skip-failed leaves out such structures and counts them"
_GIVE_UP = 10  # failures, if they are most of the frames
_FARTHER = (DISPLACEMENTS[0], 1.2)  # A, of pairs for the correction, where there are few near ones


@dataclass(frozen=True)
class FitOptions:
    """How s and V are found.

    Attributes:
        scale: s; None: by least squares on the data's own pairs of near frames.
        correct: whether to look for a correction V.
        max_error: largest relative error of the change of forces. pairs: number of pairs.
        skip_failed: leave out frames on which the calculator fails.
    """

    scale: float | None
    correct: bool
    max_error: float
    pairs: int
    skip_failed: bool = False


@dataclass(frozen=True)
class Fitted:
    """A tested calculator.

    Attributes:
        scale: s. correction: V, None without one.
        relative_error: of the change of forces over pairs of near frames, None without pairs.
        pairs: their number. gradient_mismatch: of T's forces and energies.
    """

    scale: float
    correction: Correction | None
    relative_error: float | None
    pairs: int
    gradient_mismatch: float
    unscaled_error: float | None = None

    def as_meta(self) -> dict[str, Any]:
        """For the file of views."""
        return {
            "scale": self.scale,
            "relative_error": self.relative_error,
            "pairs": self.pairs,
            "unscaled_error": self.unscaled_error,
            "gradient_mismatch": self.gradient_mismatch,
            "correction": None if self.correction is None else self.correction.as_dict(),
        }


def fit_to_data(path: Path, potential: Potential, options: FitOptions) -> Fitted:
    """Test the calculator on pairs of near frames of the data, and fit s and V.

    Raises:
        DataError: its forces are not the gradient of its energy, its change of forces has too
            large an error, or it fails on a frame (with ``skip_failed``: on most of them).
    """
    read = itertools.islice(iter_structures(path), MOST_READ)
    structures = [structure.with_usable_forces() for structure in read]
    labelled = [i for i, structure in enumerate(structures) if structure.forces is not None]
    if not labelled:
        raise DataError(f"{path}: no record has forces, so there is nothing to add changes to")
    forces = _Forces(potential, structures, force_in_ev(units_of(path)), options.skip_failed)
    spread = labelled[:: max(1, len(labelled) // 3)] + labelled
    few = list(itertools.islice((i for i in spread if forces.works(i)), 3))
    mismatch = gradient_mismatch(potential, [structures[i] for i in few])
    if mismatch > MAX_GRADIENT_MISMATCH:
        raise DataError(
            f"the calculator's forces are not the gradient of its energy (off by "
            f"{100 * mismatch:.0f} %): its second views would contradict each other. Use a "
            "potential whose forces are conservative"
        )
    pairs = forces.working_pairs(options.pairs)
    scale, error, unscaled = (
        (1.0, None, None) if forces.alone else _scale(forces, pairs, options.scale)
    )
    correction = _correction(forces, pairs, scale) if options.correct else None
    if correction is not None:
        error = correction.error * (error / correction.error_without if error else 1.0)
    if forces.alone and (correction is None or error > options.max_error):
        raise DataError(
            f"{path}: no energy fitted to the forces of these frames predicts how they change"
            + ("" if correction is None else f" (the best one is off by {100 * error:.0f} %)")
            + ". Give a calculator, or more frames"
        )
    if error is not None and error > options.max_error:
        raise DataError(
            f"the calculator's change of forces is off by {100 * error:.0f} % with s = {scale:.3g} "
            f"over {counted(len(pairs), 'pair')} of near frames of {path}, more than --max-error "
            f"{options.max_error:g} allows. Compare calculators with `ndem data curvature`"
        )
    return Fitted(scale, correction, error, len(pairs), mismatch, unscaled)


def _scale(
    forces: _Forces, pairs: Sequence[Pair], given: float | None
) -> tuple[float, float | None, float | None]:
    """s, the relative error with it, and with s = 1; no errors without pairs or calculator."""
    if forces.alone:
        return 1.0, None, None
    if not pairs:
        scale = 1.0 if given is None else given
        say(
            "The data have no pairs of near frames, so the calculator cannot be tested on them; "
            f"s = {scale:g}"
        )
        return scale, None, None
    found = agreement_of("calculator", forces.structures, pairs, forces.in_data_unit)
    scale = (found.scale or 1.0) if given is None else given
    error = found.relative_error if given is None else _error_at(found, scale)
    say(
        f"over {counted(found.pairs, 'pair')} of near frames the calculator's change of forces "
        f"is off by {100 * error:.1f} % with s = {scale:.3f} (its forces themselves: "
        f"{100 * (found.forces_error or 0):.0f} %)"
    )
    return scale, error, found.unscaled_error


class _Forces:
    """Forces of a calculator on frames, each computed once.

    With ``skip_failed``, a frame on which it fails loses its label in ``structures``.
    """

    def __init__(
        self, potential: Potential, structures: list[Structure], unit: float, skip_failed: bool
    ) -> None:
        self.potential, self.structures, self.unit = potential, structures, unit
        self.alone = isinstance(potential.calculator, NoPotential)
        self.skip_failed = skip_failed
        self._known: dict[int, np.ndarray] = {}
        self._failed = 0

    def works(self, index: int) -> bool:
        """Whether the calculator works on a frame.

        Raises:
            DataError: it does not, without ``skip_failed``, or on most frames so far.
        """
        try:
            self.of(index)
        except DataError as error:
            self._failed += 1
            if not self.skip_failed:
                raise DataError(f"{error}. {SKIP_FAILED}") from error.__cause__
            if self._failed >= _GIVE_UP and self._failed > len(self._known):
                tried = self._failed + len(self._known)
                raise DataError(
                    f"the calculator fails on {self._failed} of {counted(tried, 'frame')}; the "
                    f"last: {error}"
                ) from error.__cause__
            self.structures[index] = replace(self.structures[index], forces=None)
            return False
        return True

    def working_pairs(
        self, count: int, displacements: tuple[float, float] = DISPLACEMENTS
    ) -> list[Pair]:
        """:func:`near_pairs` of frames on which the calculator works."""
        while True:
            pairs = near_pairs(self.structures, count, displacements)
            used = [i for pair in pairs for i in (pair.first, pair.second)]
            if not [i for i in used if not self.works(i)]:
                return pairs

    def of(self, index: int) -> np.ndarray:
        """(N, 3) eV/A."""
        if index not in self._known:
            self._known[index] = self.potential(self.structures[index])[1]
        return self._known[index]

    def in_data_unit(self, index: int) -> np.ndarray:
        """(N, 3) in the unit of the labels."""
        return self.of(index) / self.unit

    def label(self, index: int) -> np.ndarray:
        """(N, 3) eV/A, F_DFT."""
        forces = self.structures[index].forces
        assert forces is not None
        return forces * self.unit


def _correction(forces: _Forces, pairs: Sequence[Pair], scale: float) -> Correction | None:
    """V, fitted to the frames of the pairs and to others; None if it does not help."""
    if len(pairs) < FEWEST_PAIRS:
        pairs = forces.working_pairs(MOST_FRAMES // 2, _FARTHER)
    if len(pairs) < FEWEST_PAIRS:
        say("no correction: the data have too few pairs of similar frames to judge one by")
        return None
    chosen = [i for i in frames_to_fit(forces.structures, pairs) if forces.works(i)]
    found = fit_correction(
        forces.structures,
        {i: forces.label(i) for i in chosen},
        {i: scale * forces.of(i) for i in chosen},
        pairs,
    )
    if found is None:
        say(
            "no correction: none is needed, or none fitted to the forces makes their change better "
            f"over {counted(len(pairs), 'pair')} left out of the fit"
        )
        return None
    correction, _ = found
    what = "an" if forces.alone else "corrected by an"
    instead = "" if forces.alone else f" instead of {100 * correction.error_without:.1f}"
    say(
        f"{what} energy of {correction.bodies} fitted to the forces of "
        f"{counted(correction.frames, 'frame')}: its change of forces is off by "
        f"{100 * correction.error:.1f}{instead} % over {counted(len(pairs), 'pair')} left out of "
        "the fit"
    )
    return correction


def _error_at(found: Agreement, scale: float) -> float:
    """The relative error with a scale other than the best one.

    |s p - t|^2 is a parabola in s whose minimum is at the best scale b; its height at s = 0 is
    |t|^2, so that |s p - t|^2 / |t|^2 = e_b^2 + (1 - e_b^2) (s / b - 1)^2.
    """
    best = found.relative_error**2
    if found.scale == 0:
        return 1.0
    return float(np.sqrt(best + (1 - best) * (scale / found.scale - 1) ** 2))


def say(text: str) -> None:
    """Print a progress message; the result is in the file."""
    print(text, file=sys.stderr, flush=True)
