"""Figures of curves: validation, training, NDeM's terms, cost; of one run or of several arms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ndem_ocp.method.diagnostics import QUARTERS
from ndem_ocp.report.metrics import Metric
from ndem_ocp.report.page import figures
from ndem_ocp.report.page.figures import Figure, Line, line_figure
from ndem_ocp.report.page.runs import Run
from ndem_ocp.report.page.series import Curve, curve, last, mean_curve, summary
from ndem_ocp.report.page.table import MOST_METRICS, split_title, splits_of

Arms = dict[str, list[Run]]


def arm_lines(
    arms: Arms,
    split: str,
    name: str,
    factor: float = 1.0,
    x: str = "step",
    x_factor: float = 1.0,
) -> list[Line]:
    """A line per arm: the mean over its runs with the band over their seeds."""
    lines = []
    for index, (arm, runs) in enumerate(arms.items()):
        steps = [curve(run, split, name, "step", factor) for run in runs]
        times = None if x == "step" else [curve(run, split, name, x) for run in runs]
        if times is not None:  # at the same points of the same runs
            times = [t for t, c in zip(times, steps) if len(c)]
        joined = mean_curve([c for c in steps if len(c)], times)
        joined = Curve(joined.x * x_factor, joined.y, joined.low, joined.high)
        lines.append(Line(arm, joined, figures.colour(index), figures.style(index)))
    return lines


def validation(arms: Arms, metrics: Sequence[Metric]) -> list[tuple[str, list[Figure]]]:
    """(heading, figures): by split where arms are compared, one group for one run."""
    runs = [run for members in arms.values() for run in members]
    splits = splits_of(runs)
    shown = metrics[:MOST_METRICS]
    if len(runs) == 1:
        return [("", _kept(_splits_of_one(runs[0], splits, metric) for metric in shown))]
    order = sorted(splits, key=lambda name: (name != "val_mean", name != "val"))
    groups = []
    for split in order:
        drawn = _kept(
            line_figure(
                metric.title,
                arm_lines(arms, split, metric.name, metric.factor),
                "step",
                metric.label,
            )
            for metric in shown
        )
        groups.append((split_title(split), drawn))
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


def over_time(arms: Arms, metrics: Sequence[Metric]) -> list[Figure]:
    """The main split's errors over the time since the start, validation and waiting included."""
    seconds = max(run.history[-1].get("time_s", 0) for runs in arms.values() for run in runs)
    factor, unit = (1 / 3600, "h") if seconds > 7200 else (1 / 60, "min")
    return _kept(
        line_figure(
            f"{metric.title}, val",
            arm_lines(arms, "val", metric.name, metric.factor, "time_s", factor),
            f"time since the start ({unit})",
            metric.label,
        )
        for metric in metrics[:2]
    )


def training(arms: Arms, metrics: Sequence[Metric]) -> list[Figure]:
    """Errors on the training data as they come, the loss, the learning rate."""
    wanted = [(metric.name, metric.title, metric.label, metric.factor) for metric in metrics[:3]]
    wanted += [("loss", "Loss", "loss", 1.0), ("lr", "Learning rate", "learning rate", 1.0)]
    wanted += [("grad_norm", "Gradient norm, before clipping", "norm", 1.0)]
    return _kept(
        line_figure(title, arm_lines(arms, "train", name, factor), "step", label)
        for name, title, label, factor in wanted
    )


def terms(arms: Arms) -> list[Figure]:
    """What the auxiliary loss does, of the arms that have one."""
    arms = with_second_view(arms)
    wanted = [
        ("ndem_loss", "NDeM loss", "L_NDeM, without its coefficient"),
        ("ndem_share_of_loss", "Share of NDeM in the loss", "share"),
        ("ndem_coefficient", "Coefficient", "lambda_NDeM"),
        ("ndem_noise_cosine", "Direction of the recovered noise", "cosine with the true noise"),
    ]
    curvatures = {
        key
        for runs in arms.values()
        for run in runs
        for line in run.lines("train")[-9:]
        for key in line
        if key.startswith("ndem_curvature_")
    }
    for name in sorted(curvatures):
        unit = name.removeprefix("ndem_curvature_").replace("_per_A2", "/Å²").replace("_per_", "/")
        wanted.append((name, "Fitted curvature", f"c ({unit})"))
    drawn = [
        line_figure(title, arm_lines(arms, "train", name), "step", label)
        for name, title, label in wanted
    ]
    return _kept([*drawn[:3], _noise_size(arms), *drawn[3:]])


def _noise_size(arms: Arms) -> Figure | None:
    lines = []
    error = arm_lines(arms, "train", "ndem_noise_error_A")
    size = arm_lines(arms, "train", "ndem_noise_size_A")
    for a, b in zip(error, size):
        lines.append(Line(f"{a.label}: error", a.curve, a.colour))
        lines.append(Line(f"{b.label}: size of the noise", b.curve, b.colour, ":"))
    return line_figure(
        "Error of the recovered noise", lines, "step", "Å per moved atom", ylim=(0, None),
        caption="The dotted line is the error of predicting no noise.",
    )  # fmt: skip


def recovered(arms: Arms) -> list[Figure]:
    """What part of the noise is not recovered, by the sigma it was drawn with."""
    colours = {arm: figures.colour(index) for index, arm in enumerate(arms)}
    arms = {arm: runs for arm, runs in with_second_view(arms).items() if runs}
    drawn = []
    for arm, runs in arms.items():
        names = quarters_of(runs[0])
        lines = [
            Line(names[n], arm_lines({arm: runs}, "train", _quarter(n))[0].curve, figures.colour(n))
            for n in range(QUARTERS)
        ]
        drawn.append(
            line_figure(
                f"Noise not recovered, by sigma{'' if len(arms) == 1 else f': {arm}'}",
                lines,
                "step",
                "error / size of the noise",
                levels={"predicting no noise": 1.0},
            )
        )
    bars = {arm: [_mean_of_last(runs, n) for n in range(QUARTERS)] for arm, runs in arms.items()}
    if arms:
        first = next(iter(arms.values()))[0]
        drawn.append(
            figures.bar_figure(
                "At the end of training",
                [name.replace(" Å", "") for name in quarters_of(first).values()],
                bars,
                "error / size of the noise",
                colours=[colours[arm] for arm in bars],
                levels={"predicting no noise": 1.0},
                xlabel="sigma (Å)",
            )
        )
    return _kept(drawn)


def _quarter(number: int) -> str:
    return f"ndem_unrecovered_sigma_{number + 1}of{QUARTERS}"


def _mean_of_last(runs: Sequence[Run], number: int) -> float:
    found = summary([last(run, _quarter(number)) for run in runs])
    return float("nan") if found is None else found.mean


def quarters_of(run: Run) -> dict[int, str]:
    """The quarters of [sigma_min, sigma_max] in Angstrom, or their numbers without a config."""
    low, high = run.ndem.get("sigma_min"), run.ndem.get("sigma_max")
    if low is None or high is None:
        return {n: f"quarter {n + 1} of {QUARTERS}" for n in range(QUARTERS)}
    edges = np.linspace(low, high, QUARTERS + 1)
    return {n: f"{edges[n]:.3g} to {edges[n + 1]:.3g} Å" for n in range(QUARTERS)}


def costs(arms: Arms) -> list[Figure]:
    """Throughput and memory over the steps."""
    wanted = [
        ("s_per_step", "Time of a step", "s", 1.0),
        ("atoms_per_s", "Throughput", "atoms / s", 1.0),
        ("memory_GB", "Peak memory", "GB", 1.0),
        ("data_share_of_time", "Waiting for data", "% of a step's time", 100.0),
    ]
    return _kept(
        line_figure(title, arm_lines(arms, "train", name, factor), "step", label, ylim=(0, None))
        for name, title, label, factor in wanted
    )


def with_second_view(arms: Arms) -> Arms:
    """The arms with the runs whose training log has an auxiliary loss; each keeps its colour, and
    one without such a run is empty."""
    return {
        arm: [run for run in runs if any("ndem_loss" in line for line in run.lines("train"))]
        for arm, runs in arms.items()
    }


def _kept(drawn: object) -> list[Figure]:
    return [figure for figure in drawn if figure is not None]
