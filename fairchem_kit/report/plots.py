"""Figures of runs. Every function writes one PNG and returns its path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.figure_style import MUTED, TRAIN, VAL, plt, save
from fairchem_kit.report.predictions import Parity
from fairchem_kit.words import counted


def plot_curves(
    history: Sequence[dict[str, Any]], zero_force_mae: float, path: Path, window: int = 50
) -> Path:
    """Training curves of one NDeM run.

    Args:
        history: records of :func:`fairchem_kit.history.logger.read_history`, all splits.
        zero_force_mae: eV/A, the error of predicting zero forces on the validation split.
        path: PNG to write.
        window: fairchem's ``print_every``. Its training metrics are means since the last printed
            step, so the record of a printed step is the mean of that many steps.
    """
    train = [r for r in history if r["split"] == "train" and r["step"] % window == 0]
    label = f"training (mean of {counted(window, 'step')})"
    val = [r for r in history if r["split"] == "val"]
    figure, axes = plt.subplots(2, 2, figsize=(8, 5.2), layout="constrained")
    force, energy, cosine, noise = axes.flat

    _line(force, train, "forces_mae", label, TRAIN)
    _line(force, val, "forces_mae", "validation", VAL, "o")
    force.axhline(zero_force_mae, color=MUTED, ls="--", lw=1)
    force.annotate(
        "predicting zero", (0.99, zero_force_mae), xycoords=("axes fraction", "data"),
        ha="right", va="bottom", color=MUTED,
    )  # fmt: skip
    force.set(title="Forces", ylabel="MAE per component (eV/Å)", ylim=(0, None))
    force.legend(loc="upper right", bbox_to_anchor=(1.0, 0.9))

    _line(energy, train, "energy_mae", label, TRAIN)
    _line(energy, val, "energy_mae", "validation", VAL, "o")
    energy.set(title="Energy", ylabel="MAE (eV)", ylim=(0, None))

    _line(cosine, train, "ndem_noise_cosine", "cosine of recovered and true noise", TRAIN)
    cosine.axhline(0, color=MUTED, ls="--", lw=1)
    cosine.set(title="NDeM: direction of the noise", ylabel="cosine", ylim=(None, 1))

    _line(noise, train, "ndem_noise_error_A", "error of the recovered noise", TRAIN)
    _line(noise, train, "ndem_noise_size_A", "size of the noise (error of predicting none)", MUTED)
    noise.set(title="NDeM: size of the noise", ylabel="per moved atom (Å)", ylim=(0, None))
    noise.legend(loc="lower left")
    for axis in axes[-1]:
        axis.set_xlabel("step")
    return save(figure, path)


def plot_parity(splits: dict[str, Parity], path: Path) -> Path:
    """Predicted against reference forces and energies; one column per split."""
    figure, axes = plt.subplots(
        2, len(splits), figsize=(3.6 * len(splits), 6.4), layout="constrained", squeeze=False
    )
    for column, (name, parity) in enumerate(splits.items()):
        for row, (what, unit, predicted, reference) in enumerate(
            (
                ("force components", "eV/Å", parity.forces, parity.reference_forces),
                ("energies", "eV", parity.energy, parity.reference_energy),
            )
        ):
            _parity_panel(axes[row][column], predicted.ravel(), reference.ravel())
            mae = np.abs(predicted - reference).mean()
            axes[row][column].set(
                title=f"{name}: {what}\nMAE {mae:.3f} {unit}",
                xlabel=f"reference ({unit})",
                ylabel=f"predicted ({unit})",
            )
    return save(figure, path)


def _parity_panel(axis: Any, predicted: np.ndarray, reference: np.ndarray) -> None:
    low = min(predicted.min(), reference.min())
    high = max(predicted.max(), reference.max())
    pad = 0.03 * (high - low or 1.0)
    limits = (low - pad, high + pad)
    axis.plot(limits, limits, color=MUTED, lw=1, ls="--", zorder=1)
    if len(reference) > 1500:
        axis.hexbin(
            reference, predicted, gridsize=60, bins="log", mincnt=1, cmap="viridis", zorder=2,
            extent=(*limits, *limits),
        )  # fmt: skip
    else:
        axis.scatter(reference, predicted, s=7, color=TRAIN, alpha=0.5, lw=0, zorder=2)
    axis.set(xlim=limits, ylim=limits, aspect="equal")


def _line(
    axis: Any, records: list[dict[str, Any]], key: str, label: str, color: str, marker: str = "."
) -> None:
    found = [(r["step"], r[key]) for r in records if key in r]
    if found:
        axis.plot(*zip(*found), color=color, marker=marker, ms=4, lw=1.2, label=label)


ARM_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#888888")


def plot_arms(result: dict[str, Any], path: Path) -> Path:
    """Learning curves of a sweep's arms: mean over the seeds and the range between them.

    Args:
        result: of :func:`fairchem_kit.report.sweep_results.collect`.
        path: PNG to write.
    """
    metric = result["metrics"][0]
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", sharey=True)
    for colour, (name, arm) in zip(ARM_COLOURS * 9, result["arms"].items()):
        runs = [run["validation"] for run in arm["runs"] if run["validation"]]
        if not runs:
            continue
        length = min(map(len, runs))
        value = np.array([[point["value"] for point in run[:length]] for run in runs])
        for axis, key, unit in ((axes[0], "step", 1.0), (axes[1], "process_s", 60.0)):
            if key not in runs[0][0]:
                continue
            x = np.mean([[point[key] for point in run[:length]] for run in runs], axis=0) / unit
            axis.plot(x, value.mean(0), color=colour, lw=1.2, label=name)
            axis.fill_between(x, value.min(0), value.max(0), color=colour, alpha=0.18, lw=0)
    axes[0].set(xlabel="step", ylabel=f"validation {metric}", yscale="log")
    axes[1].set(xlabel="processor time (min)")
    # 0.5 and not 5 x 10^-1, and not a label on every line
    axes[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes[0].yaxis.set_minor_formatter(
        lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else ""
    )
    axes[0].legend(loc="upper right")
    return save(figure, path)
