"""Figures with curves of validation, training and cost, for one run or several arms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fairchem_kit.report.metrics import Metric
from fairchem_kit.report.page import figures
from fairchem_kit.report.page.comparable import Arms, Sets, titled
from fairchem_kit.report.page.figures import Figure, Line, line_figure
from fairchem_kit.report.page.runs import Run
from fairchem_kit.report.page.series import Curve, curve, mean_curve
from fairchem_kit.report.page.table import MOST_METRICS, split_title, splits_of


def arm_lines(
    arms: Arms,
    split: str,
    name: str,
    factor: float = 1.0,
    x: str = "step",
    x_factor: float = 1.0,
) -> list[Line]:
    """One line per arm: the mean over its runs with the band over their seeds."""
    lines = []
    for index, (arm, runs) in enumerate(arms.items()):
        steps = [curve(run, split, name, "step", factor) for run in runs]
        times = None if x == "step" else [curve(run, split, name, x) for run in runs]
        if times is not None:  # at the same points of the same runs
            times = [t for t, c in zip(times, steps) if len(c)]
        joined = mean_curve([c for c in steps if len(c)], times)
        joined = Curve(joined.x * x_factor, joined.y, joined.low, joined.high)
        named = len(arms) > 1
        lines.append(Line(arm, joined, figures.colour(index), figures.style(index), named))
    return lines


def validation(arms: Arms, metrics: Sequence[Metric], sets: Sets) -> list[tuple[str, list[Figure]]]:
    """(heading, figures): by split and set if arms are compared, one group for a single run."""
    runs = [run for members in arms.values() for run in members]
    splits = splits_of(runs)
    shown = metrics[:MOST_METRICS]
    if len(runs) == 1:
        return [("", kept(_splits_of_one(runs[0], splits, metric) for metric in shown))]
    order = sorted(splits, key=lambda name: (name != "val_mean", name != "val"))
    groups = []
    for split in order:
        for letter in sets.of(runs, split):
            here = sets.only(arms, split, letter)
            drawn = kept(
                line_figure(
                    metric.title,
                    arm_lines(here, split, metric.name, metric.factor),
                    "step",
                    metric.label,
                )
                for metric in shown
            )
            groups.append((titled(split_title(split), letter), drawn))
    return [group for group in groups if group[1]]


def _splits_of_one(run: Run, splits: Sequence[str], metric: Metric) -> Figure | None:
    lines = [
        Line(
            split_title(split),
            curve(run, split, metric.name, factor=metric.factor),
            "#111111" if split == "val_mean" else figures.colour(index),
            "--" if split == "val_mean" else "-",
        )
        for index, split in enumerate(splits)
    ]
    return line_figure(metric.title, lines, "step", metric.label)


def over_time(arms: Arms, metrics: Sequence[Metric], sets: Sets) -> list[Figure]:
    """The main split's errors over the time since the start, including validation and waiting."""
    runs = [run for members in arms.values() for run in members]
    seconds = max(run.history[-1].get("time_s", 0) for run in runs)
    factor, unit = (1 / 3600, "h") if seconds > 7200 else (1 / 60, "min")
    return kept(
        line_figure(
            f"{metric.title}, {titled('val', letter)}",
            arm_lines(
                sets.only(arms, "val", letter), "val", metric.name, metric.factor, "time_s", factor
            ),
            f"time since the start ({unit})",
            metric.label,
        )
        for letter in sets.of(runs, "val")
        for metric in metrics[:2]
    )


def training(arms: Arms, metrics: Sequence[Metric]) -> list[Figure]:
    """Errors on the training batches, the loss, the learning rate."""
    wanted = [(metric.name, metric.title, metric.label, metric.factor) for metric in metrics[:3]]
    wanted += [("loss", "Loss", "loss", 1.0), ("lr", "Learning rate", "learning rate", 1.0)]
    wanted += [("grad_norm", "Gradient norm, before clipping", "norm", 1.0)]
    return kept(
        line_figure(title, arm_lines(arms, "train", name, factor), "step", label)
        for name, title, label, factor in wanted
    )


def costs(arms: Arms) -> list[Figure]:
    """Throughput and memory over the steps."""
    wanted = [
        ("s_per_step", "Time of a step", "s", 1.0),
        ("atoms_per_s", "Throughput", "atoms / s", 1.0),
        ("memory_GB", "Peak memory", "GB", 1.0),
        ("data_share_of_time", "Waiting for data", "% of a step's time", 100.0),
    ]
    return kept(
        line_figure(title, arm_lines(arms, "train", name, factor), "step", label, ylim=(0, None))
        for name, title, label, factor in wanted
    )


def kept(drawn: Iterable[Figure | None]) -> list[Figure]:
    """Those that are not None."""
    return [figure for figure in drawn if figure is not None]
