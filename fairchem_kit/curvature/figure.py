"""The figure of ``ndem data curvature``: errors of the change of forces over displacements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fairchem_kit.curvature.measure import Agreement
from fairchem_kit.figure_style import MUTED, plt, save

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")  # Paul Tol's bright


def draw(found: Sequence[Agreement], path: Path) -> Path:
    """Write one PNG: relative error over displacement, one line per predictor.

    Args:
        found: the isotropic predictor first. path: PNG to write.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    colours = [MUTED, *_COLOURS * len(found)]
    for each, colour in zip(found, colours):
        middle = [(low + high) / 2 for low, high, *_ in each.by_displacement]
        errors = [100 * row[-1] for row in each.by_displacement]
        axes.plot(middle, errors, "o-", color=colour, ms=4, label=_short(each.name))
    axes.axhline(100, color=MUTED, lw=1, ls="--")
    axes.annotate(
        "predicting no change", (0.01, 100), xycoords=("axes fraction", "data"), va="bottom",
        color=MUTED, fontsize=7,
    )  # fmt: skip
    axes.set(
        xlabel="displacement between two frames (Å, rms over free atoms)",
        ylabel="error of the change of forces (%)",
        yscale="log",
    )
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.margins(x=0.02)
    return save(figure, path)


def _short(name: str) -> str:
    """A call without its arguments."""
    return name.partition("(")[0]
