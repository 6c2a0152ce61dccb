"""What NDeM gains at equal cost: force errors against processor time, from the small comparisons.

    python -m ndem_ocp.bench.pages.budgets    # docs/images/budgets.png; write.py has its table

Equal cost means equal processor time. Each run has a learning-rate schedule of its own length. So
only the end of a curve is what a run of that length reaches; the middle of a curve is not.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.figure_style import plt, save
from fairchem_kit.report.plots import ARM_COLOURS
from ndem_ocp.bench.checkout import ROOT, in_checkout
from ndem_ocp.bench.pages.molecules import ARMS
from ndem_ocp.bench.pages.table import NOT_RUN, read, spread, table

RESULTS, PICTURE = ROOT / "results", ROOT / "docs/images/budgets.png"
# file, title, unit, and the data of the errors in a curve
SETS = (
    ("oc20_trajectories", "OC20 trajectories, new systems", "eV/Å"),
    ("md17_ethanol_small", "MD17 ethanol", "kcal/mol/Å"),
    ("md17_aspirin_small", "MD17 aspirin", "kcal/mol/Å"),
    ("md17_ethanol_100", "MD17 ethanol, 100 frames", "kcal/mol/Å"),
)
FRACTIONS = (0.25, 0.5, 1.0)


def curves(found: dict[str, Any], arm: str) -> list[list[tuple[float, float]]]:
    """(processor seconds, force MAE) of the validations, for each seed."""
    runs = found["arms"][arm]["runs"]
    points = [run.get("curve") or run.get("validation") or [] for run in runs]
    return [
        [(point["process_s"], point.get("forces_mae", point.get("value"))) for point in run]
        for run in points
    ]


def at_budget(run: list[tuple[float, float]], seconds: float) -> float | None:
    """Error at the last validation within a budget; None if there is none."""
    within = [error for spent, error in run if spent <= seconds * (1 + 1e-9)]
    return within[-1] if within else None


def budgets(results: Path) -> str:
    """Table: mean errors within fractions of the time that NDeM takes."""
    head = ["data", "seeds", "processor time", *(ARMS[arm] for arm in ("plain-long", "ndem"))]
    rows = []
    for name, title, unit in SETS:
        found = read(results, name)
        if found is None or not all(curves(found, "ndem")):
            rows.append([title, "", NOT_RUN, "", ""])
            continue
        whole = float(np.mean([run[-1][0] for run in curves(found, "ndem")]))
        for fraction in FRACTIONS:
            cells = []
            for arm in ("plain-long", "ndem"):
                # some seeds take slightly longer than the mean
                errors = [at_budget(run, 1.02 * fraction * whole) for run in curves(found, arm)]
                cells.append(_cell(errors, unit))
            minutes = f"{fraction * whole / 60:.1f} min"
            seeds = len(curves(found, "ndem"))
            rows.append([title, seeds, minutes, *cells])
    return table(head, rows)


def _cell(errors: list[float | None], unit: str) -> str:
    known = [error for error in errors if error is not None]
    if len(known) < len(errors):
        return "no validation yet"
    deviation = float(np.std(known, ddof=1)) if len(known) > 1 else None
    digits = 4 if unit.startswith("eV") else 3
    return f"{spread({'mean': float(np.mean(known)), 'stdev': deviation}, digits)} {unit}"


def plot(results: Path, path: Path) -> Path:
    """Mean over seeds and their range, one panel per data set."""
    figure, axes = plt.subplots(1, len(SETS), figsize=(3.5 * len(SETS), 3.1), layout="constrained")
    for axis, (name, title, unit) in zip(axes, SETS):
        axis.set(title=title, xlabel="processor time (min)", ylabel=f"force MAE ({unit})")
        found = read(results, name) or {"arms": {}}
        for colour, (arm, label) in zip(ARM_COLOURS, ARMS.items()):
            runs = curves(found, arm) if arm in found["arms"] else []
            if not runs or not all(runs):
                continue
            length = min(map(len, runs))
            values = np.array([run[:length] for run in runs])
            minutes, error = values[:, :, 0].mean(0) / 60, values[:, :, 1]
            axis.plot(minutes, error.mean(0), color=colour, lw=1.3, label=label)
            axis.fill_between(minutes, error.min(0), error.max(0), color=colour, alpha=0.18, lw=0)
        if not axis.lines:
            axis.text(0.5, 0.5, NOT_RUN, ha="center", transform=axis.transAxes)
        elif unit != "eV/Å":
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.yaxis.set_minor_formatter(
                lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else ""
            )
    axes[1].legend(loc="upper right")
    return save(figure, path)


if __name__ == "__main__":
    sys.exit(in_checkout(lambda: print(plot(RESULTS, PICTURE).relative_to(ROOT))))
