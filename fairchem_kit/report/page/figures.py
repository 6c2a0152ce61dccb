"""Figures as inline SVG: they scale with the page, print sharply and need no separate files."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from fairchem_kit.report.page.series import Curve

#: Okabe and Ito's colours, which most colour-blind readers can distinguish
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
STYLES = ("-", "--", "-.", ":")
MUTED = "#666666"
SIZE = (4.8, 3.1)  # inches; on the page each figure has at least 340 px
_MOST_POINTS = 400
_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "text.color": "#111111",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",  # keep text as text: it can be searched and read aloud
    "svg.hashsalt": "ndem report",
}


@dataclass(frozen=True)
class Line:
    """A curve with its name in the legend."""

    label: str
    curve: Curve
    colour: str = COLOURS[0]
    style: str = "-"
    named: bool = False  # show in the legend even if it is the only one
    marker: str | None = None


@dataclass(frozen=True)
class Figure:
    """One figure of the page: its SVG and a caption, "" for none."""

    svg: str
    caption: str = ""


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def style(index: int) -> str:
    """A different dash for each, so that lines that coincide can both be seen, also in black and
    white."""
    return STYLES[index % len(STYLES)]


def line_figure(
    title: str,
    lines: Sequence[Line],
    xlabel: str,
    ylabel: str,
    *,
    levels: dict[str, float] | None = None,
    ylim: tuple[float | None, float | None] | None = None,
    caption: str = "",
) -> Figure | None:
    """Curves with their bands; None if none of them has a point.

    Args:
        levels: horizontal lines, by name. ylim: limits, None for the data's own.
    """
    lines = [line for line in lines if len(line.curve)]
    if not lines:
        return None
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=SIZE, layout="constrained")
        for line in lines:
            _draw(axis, line)
        for name, value in (levels or {}).items():
            axis.axhline(value, color=MUTED, ls="--", lw=1, label=name)
        axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
        _scale(axis, [line.curve.y for line in lines], ylim)
        _legend(figure, axis, least=1 if any(line.named for line in lines) else 2)
        return Figure(_svg(figure, f"{title}: {ylabel} over {xlabel}"), caption)


def _draw(axis: Any, line: Line) -> None:
    curve = line.curve
    keep = np.arange(len(curve))
    if len(keep) > _MOST_POINTS:
        keep = np.unique(np.linspace(0, len(curve) - 1, _MOST_POINTS).astype(int))
    few = len(keep) <= 25
    marker = line.marker or ("o" if few else None)
    axis.plot(
        curve.x[keep], curve.y[keep], color=line.colour, ls=line.style, lw=1.4, marker=marker,
        ms=3, label=line.label,
    )  # fmt: skip
    if curve.low is not None and curve.high is not None:
        low, high = curve.low[keep], curve.high[keep]
        axis.fill_between(curve.x[keep], low, high, color=line.colour, alpha=0.18, lw=0)


def _scale(axis: Any, values: list[np.ndarray], ylim: Any) -> None:
    joined = np.concatenate(values)
    if joined.min() == joined.max() == 0:  # a threshold that is not reached yet
        axis.set_ylim(-0.05, 1)
    elif ylim is not None:
        axis.set_ylim(*ylim)
    elif joined.min() > 0 and joined.max() > 15 * joined.min():
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_formatter(
            lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else ""
        )
    axis.ticklabel_format(axis="x", style="plain", useOffset=False)
    axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6))


def _legend(figure: Any, axis: Any, least: int = 2) -> None:
    labels = axis.get_legend_handles_labels()[1]
    if len(labels) < least:
        return
    longest = max(map(len, labels))
    columns = max(1, min(len(labels), 64 // (longest + 6)))
    figure.legend(loc="outside lower center", ncols=columns)


def bar_figure(
    title: str,
    groups: Sequence[str],
    bars: dict[str, Sequence[float]],
    label: str,
    *,
    colours: Sequence[str] = COLOURS,
    levels: dict[str, float] | None = None,
    xlabel: str = "",
    caption: str = "",
    errors: dict[str, Sequence[float | None]] | None = None,
) -> Figure | None:
    """Upright bars: one group per name, one bar per arm in it; NaN is no bar."""
    if not groups or not bars or not np.isfinite([v for b in bars.values() for v in b]).any():
        return None
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=SIZE, layout="constrained")
        width = 0.8 / len(bars)
        place = np.arange(len(groups))
        for index, (name, values) in enumerate(bars.items()):
            spread = [e or 0.0 for e in errors[name]] if errors else None
            axis.bar(
                place + (index - (len(bars) - 1) / 2) * width, values, 0.94 * width, label=name,
                color=colours[index % len(colours)], yerr=spread, error_kw={"lw": 1, "capsize": 2},
            )  # fmt: skip
        for name, value in (levels or {}).items():
            axis.axhline(value, color=MUTED, ls="--", lw=1, label=name)
        heights = [v for b in bars.values() for v in b if np.isfinite(v)]
        if min(heights) > 0 and max(heights) > 40 * min(heights):
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        long = sum(map(len, groups)) > 38
        axis.set_xticks(place, groups, rotation=60 if long else 0, ha="right" if long else "center")
        if long:
            axis.tick_params(axis="x", labelsize=7.5)
        axis.grid(axis="x", visible=False)
        axis.set(title=title, ylabel=label, xlabel=xlabel)
        _legend(figure, axis)
        return Figure(_svg(figure, f"{title}: {label}"), caption)


def parity_figure(
    title: str, reference: np.ndarray, predicted: np.ndarray, unit: str, caption: str = ""
) -> Figure | None:
    """Predicted against reference values, as a density if there are many."""
    good = np.isfinite(reference) & np.isfinite(predicted)
    reference, predicted = reference[good], predicted[good]
    if not len(reference):
        return None
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(4.0, 3.7), layout="constrained")
        low = float(min(reference.min(), predicted.min()))
        high = float(max(reference.max(), predicted.max()))
        pad = 0.03 * (high - low or 1.0)
        limits = (low - pad, high + pad)
        axis.plot(limits, limits, color=MUTED, lw=1, ls="--", zorder=3)
        if len(reference) > 800:
            drawn = axis.hexbin(
                reference, predicted, gridsize=70, bins="log", mincnt=1, cmap="viridis", zorder=2,
                extent=(*limits, *limits), linewidths=0.1, rasterized=True,
            )  # fmt: skip
            bar = figure.colorbar(drawn, ax=axis, shrink=0.8)
            bar.set_label("count")
            bar.solids.set_rasterized(True)
        else:
            axis.scatter(reference, predicted, s=9, color=COLOURS[0], alpha=0.5, lw=0, zorder=2)
        axis.set(xlim=limits, ylim=limits, aspect="equal", title=title)
        axis.set(xlabel=f"reference ({unit})", ylabel=f"predicted ({unit})")
        return Figure(_svg(figure, f"{title}: predicted against reference ({unit})"), caption)


def _svg(figure: Any, description: str) -> str:
    """The figure as an SVG element, with ids that are unique on the page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", dpi=150, metadata={"Date": None})
    plt.close(figure)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)
    head, rest = svg.split(">", 1)
    head = re.sub(r' (width|height|version)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{escape(description, quote=True)}">{rest}'.strip()
