"""Numbers from histories: curves of one run, means and bands over the seeds of an arm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from fairchem_kit.report.page.runs import Run

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Curve:
    """Values over x; ``low`` and ``high`` are the band, None for a single run.

    Attributes:
        x, y, low, high: (n,) arrays.
    """

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.x)


def curve(run: Run, split: str, name: str, x: str = "step", factor: float = 1.0) -> Curve:
    """One metric of one run; in training, at the printed steps, whose values are means since the
    last."""
    lines = [line for line in run.lines(split) if name in line and x in line]
    if split == "train":
        lines = _means(run, lines)
    return Curve(
        np.array([line[x] for line in lines], dtype=float),
        factor * np.array([line[name] for line in lines], dtype=float),
    )


def _means(run: Run, lines: list[dict]) -> list[dict]:
    every = run.command.get("print_every") or 1
    printed = [line for line in lines if line["step"] % every == 0]
    return printed if len(printed) > 1 else lines  # the run is shorter than two console lines


def mean_curve(curves: Sequence[Curve], at: Sequence[Curve] | None = None) -> Curve:
    """Mean and band over the runs of an arm, at the steps common to all.

    Args:
        curves: of the runs, over steps. at: curves of the same runs over another x (time), used
            point by point; their means give x.
    """
    curves = [c for c in curves if len(c)]
    if not curves:
        return Curve(np.zeros(0), np.zeros(0))
    steps = sorted(set.intersection(*(set(c.x.tolist()) for c in curves)))
    rows = np.array([_at(c, c.y, steps) for c in curves])
    x = np.array(steps)
    if at is not None:
        x = np.mean([_at(c, a.x, steps) for c, a in zip(curves, at)], axis=0)
    if len(rows) == 1:
        return Curve(x, rows[0])
    low, high = band(rows)
    return Curve(x, rows.mean(0), low, high)


def _at(curve: Curve, values: np.ndarray, steps: list[float]) -> np.ndarray:
    place = {step: index for index, step in enumerate(curve.x.tolist())}
    return values[[place[step] for step in steps]]


def band(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(seeds, n) -> lower and upper limit, (n,) each.

    The 95 per cent confidence interval of the mean by Student's t; for two seeds, for which it is
    meaningless, the two values themselves.
    """
    if len(rows) < 3:
        return rows.min(0), rows.max(0)
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, len(rows) - 1) * stats.sem(rows, axis=0)
    return rows.mean(0) - half, rows.mean(0) + half


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation over seeds; ``stdev`` is None for one run."""

    mean: float
    stdev: float | None
    runs: int


def summary(values: Sequence[float | None]) -> Summary | None:
    """Of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    spread = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return Summary(float(np.mean(known)), spread, len(known))


def value_at(run: Run, split: str, name: str, step: int | None) -> float | None:
    """A split's metric in the validation at a step."""
    for line in reversed(run.lines(split)):
        if line["step"] == step and name in line:
            return float(line[name])
    return None


def cost(run: Run, name: str) -> float | None:
    """Median over the console lines of a cost of a step; None if it was not logged."""
    values = [line[name] for line in run.lines("train") if name in line]
    return float(np.median(values)) if values else None


def last(run: Run, name: str) -> float | None:
    """The last value of a quantity in the training log."""
    return next((line[name] for line in reversed(run.lines("train")) if name in line), None)
