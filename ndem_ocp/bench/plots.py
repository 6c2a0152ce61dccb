"""Figures of results of ``ndem bench``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter

from fairchem_kit.figure_style import MUTED, save
from ndem_ocp.bench.scaling import abscissa

ARMS = {  # arm -> (label, colour of Paul Tol's bright scheme)
    "upstream": ("upstream, plain", "#888888"),
    "naive": ("naive NDeM (upstream's model, two passes)", "#ee6677"),
    "joint": ("NDeM on upstream's model, one pass", "#aa3377"),
    "dens": ("DeNS (upstream's model)", "#ccbb44"),
    "plain": ("ours, plain", "#66ccee"),
    "ndem": ("ours, NDeM", "#4477aa"),
}
OTHER = "#228833"  # an objective without an entry


def plot_step(results: Sequence[tuple[str, dict[str, Any]]], path: Path) -> Path:
    """Time and peak memory of each arm as ratios to upstream's plain step.

    Args:
        results: (label, one setting from a result of ``ndem bench step``), left to right.
        path: PNG to write.
    """
    measured = dict.fromkeys(arm for _, setting in results for arm in setting["arms"])
    others = [arm for arm in measured if arm not in ARMS and "@" not in arm]
    arms = [arm for arm in (*ARMS, *others) if arm in measured]
    arms.remove("upstream")
    figure, axes = plt.subplots(2, 1, figsize=(8, 5.4), layout="constrained", sharex=True)
    panels = ((axes[0], "time of a step"), (axes[1], "peak memory"))
    width = 0.8 / len(arms)
    for axis, title in panels:
        for i, arm in enumerate(arms):
            at = [n + (i - (len(arms) - 1) / 2) * width for n in range(len(results))]
            found = [_bar(setting["arms"].get(arm), title) for _, setting in results]
            label, colour = ARMS.get(arm, (arm, OTHER))
            heights = [bar[0] for bar in found]
            axis.bar(at, heights, 0.92 * width, color=colour, label=label)
            spread = np.array([[h - low, high - h] for h, low, high in found]).T
            if title != "peak memory":
                axis.errorbar(at, heights, spread, fmt="none", ecolor="#333333", elinewidth=0.8)
            for x, (height, _, high) in zip(at, found):
                if np.isfinite(height):
                    axis.annotate(
                        f"{height:.2f}", (x, high), xytext=(0, 2), textcoords="offset points",
                        ha="center", fontsize=6.5,
                    )  # fmt: skip
        axis.axhline(1.0, color=MUTED, ls="--", lw=1)
        axis.set_ylabel(f"{title} / upstream's plain step")
        axis.margins(y=0.12)
        axis.grid(axis="x", visible=False)
    axes[1].set_xticks(range(len(results)), [label for label, _ in results])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return save(figure, path)


def _bar(found: dict[str, Any] | None, title: str) -> tuple[float, float, float]:
    """(height, lower end, upper end) of one bar; NaN if not measured."""
    if found is None:
        return (np.nan,) * 3
    if title == "peak memory":
        return (found.get("memory_ratio", np.nan),) * 3
    ratio = found["ratio"]
    return ratio["median"], ratio["q25"], ratio["q75"]


def plot_scaling(result: dict[str, Any], path: Path) -> Path:
    """Seconds of a step along each axis, both scales logarithmic, and NDeM's ratio to upstream.

    Args:
        result: of ``ndem bench scaling``.
        path: PNG to write.
    """
    axes_of = result["axes"]
    figure, axes = plt.subplots(
        2, len(axes_of), figsize=(2.1 * len(axes_of) + 0.6, 5.0), layout="constrained",
        squeeze=False, sharey="row", sharex="col", height_ratios=(3, 2),
    )  # fmt: skip
    for column, (name, axis) in enumerate(axes_of.items()):
        points = axis["points"]
        x = [abscissa(name, point) for point in points]
        for arm in axis["exponent"]:
            label, colour = ARMS.get(arm, (arm, OTHER))
            found = [point["arms"][arm] for point in points]
            style = {"color": colour, "marker": "o", "ms": 3.5, "lw": 1.2}
            seconds = [one["wall_s"]["median"] for one in found]
            axes[0][column].plot(x, seconds, label=label, **style)
            ratio = [one["ratio"]["median"] for one in found]
            axes[1][column].plot(x, ratio, **style)
        axes[0][column].set(xscale="log", yscale="log")
        axes[0][column].set_title(_TITLES.get(name, name))
        axes[1][column].set_xticks(x, [f"{value:.0f}" for value in x])
        axes[1][column].xaxis.set_minor_formatter(NullFormatter())
        axes[1][column].minorticks_off()
    axes[0][0].set_ylabel("step (s)")
    axes[0][0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes[0][0].yaxis.set_minor_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    )
    axes[1][0].set_ylabel("step / upstream's plain step")
    axes[1][0].set_ylim(bottom=0)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return save(figure, path)


_TITLES = {
    "atoms": "atoms, one structure",
    "edges": "edges",
    "L": "degree L",
    "layers": "layers",
    "batch": "structures in a batch",
}
