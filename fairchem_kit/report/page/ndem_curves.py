"""Figures of second views in training: NDeM's terms, recovered noise, change of forces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fairchem_kit.report.metrics import QUARTERS, unit_text
from fairchem_kit.report.page.arm import sigma_range
from fairchem_kit.report.page.comparable import Arms
from fairchem_kit.report.page.curves import arm_lines, kept
from fairchem_kit.report.page.figures import Figure, Line, bar_figure, colour, line_figure
from fairchem_kit.report.page.runs import Run
from fairchem_kit.report.page.series import last, summary


def terms(arms: Arms) -> list[Figure]:
    """The auxiliary loss, for the arms that have one."""
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
    return kept([*drawn[:3], _noise_size(arms), *drawn[3:]])


def _noise_size(arms: Arms) -> Figure | None:
    return _beside_size(
        arms, ("ndem_noise_error_A", "ndem_noise_size_A"), "Error of the recovered noise",
        "size of the noise", "Å per moved atom",
        "The dotted line is the error of predicting no noise.",
    )  # fmt: skip


def _beside_size(
    arms: Arms, names: tuple[str, str], title: str, size: str, label: str, caption: str
) -> Figure | None:
    """An error and the size of the predicted quantity, which is the error of predicting zero."""
    lines = []
    for a, b in zip(*(arm_lines(arms, "train", name) for name in names)):
        lines.append(Line(f"{a.label}: error", a.curve, a.colour))
        lines.append(Line(f"{b.label}: {size}", b.curve, b.colour, ":"))
    return line_figure(title, lines, "step", label, ylim=(0, None), caption=caption)


_CHANGE = "ndem_change_error_"


def second_views(arms: Arms) -> list[Figure]:
    """How well the model's change of forces agrees with the potential's, for the arms that log
    it."""
    runs = [run for members in arms.values() for run in members]
    units = sorted(
        {
            name.removeprefix(_CHANGE)
            for run in runs
            for line in run.lines("train")
            for name in line
            if name.startswith(_CHANGE)
        }
    )
    drawn = [
        _beside_size(
            arms, (f"{_CHANGE}{unit}", f"ndem_change_size_{unit}"),
            "Error of the change of forces", "size of the change",
            f"{unit_text(unit)} per displaced atom",
            "The dotted line is the error of predicting no change.",
        )
        for unit in units
    ]  # fmt: skip
    slope, cosine = "ndem_change_slope", "ndem_change_cosine"
    shares = arm_lines(arms, "train", "ndem_share_of_atoms", 100.0)
    drawn += [
        line_figure(
            "Slope of predicted over given change", arm_lines(arms, "train", slope), "step",
            "slope", levels={"right": 1.0},
        ),
        line_figure(
            "Direction of the change", arm_lines(arms, "train", cosine), "step",
            "cosine with the given change",
        ),
        line_figure("Displaced atoms", shares, "step", "% of the atoms", ylim=(0, None)),
    ]  # fmt: skip
    return kept(drawn)


def recovered(arms: Arms) -> list[Figure]:
    """The share of the noise that is not recovered, by its sigma."""
    colours = {arm: colour(index) for index, arm in enumerate(arms)}
    arms = {arm: runs for arm, runs in with_second_view(arms).items() if runs}
    drawn = []
    for arm, runs in arms.items():
        names = quarters_of(runs[0])
        lines = [
            Line(names[n], arm_lines({arm: runs}, "train", _quarter(n))[0].curve, colour(n))
            for n in range(QUARTERS)
        ]
        drawn.append(
            line_figure(
                f"Noise not recovered, by sigma{'' if len(colours) == 1 else f': {arm}'}",
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
            bar_figure(
                "At the end of training",
                [name.replace(" Å", "") for name in quarters_of(first).values()],
                bars,
                "error / size of the noise",
                colours=[colours[arm] for arm in bars],
                levels={"predicting no noise": 1.0},
                xlabel="sigma (Å)",
            )
        )
    return kept(drawn)


def _quarter(number: int) -> str:
    return f"ndem_unrecovered_sigma_{number + 1}of{QUARTERS}"


def _mean_of_last(runs: Sequence[Run], number: int) -> float:
    found = summary([last(run, _quarter(number)) for run in runs])
    return float("nan") if found is None else found.mean


def quarters_of(run: Run) -> dict[int, str]:
    """The quarters of [sigma_min, sigma_max] in Angstrom, or just numbered without a
    configuration."""
    limits = sigma_range(run.ndem)
    if limits is None:
        return {n: f"quarter {n + 1} of {QUARTERS}" for n in range(QUARTERS)}
    edges = np.linspace(*limits, QUARTERS + 1)
    return {n: f"{edges[n]:.3g} to {edges[n + 1]:.3g} Å" for n in range(QUARTERS)}


def with_second_view(arms: Arms) -> Arms:
    """The arms with only the runs that logged an auxiliary loss; an arm without such runs is empty,
    so that each arm keeps its colour."""
    return {
        arm: [run for run in runs if any("ndem_loss" in line for line in run.lines("train"))]
        for arm, runs in arms.items()
    }
