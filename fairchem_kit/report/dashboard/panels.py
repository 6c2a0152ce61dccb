"""The panels as plain values, by section; ``workspace.py`` turns them into W&B's classes.

Panels only refer to names of metrics and settings, so they can be made before a run is synced and
are valid for every run of the project.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from fairchem_kit.report.metrics import EFWT, QUARTERS, Metric, describe, unit_text

#: those of configs/oc20, used without runs
OC20_SPLITS = ("val", "val_ood_ads", "val_ood_cat", "val_ood_both", "val_mean")
OC20_METRICS = ("energy_mae_meV", "forces_mae_meV_per_A", "forces_cosine_similarity", EFWT)
ARM = "cmd.identifier"  # key of a run's configuration with its arm in sweeps
#: settings varied in the paper's Tables 4 and 5
SWEPT = {
    "task.ndem.coefficient": "Table 4: coefficient of NDeM",
    "task.ndem.sigma_max": "Table 5: sigma_max",
}
#: tables of ``ndem report --wandb`` in eval/SPLIT/
GROUPINGS = ("by_element", "by_force", "by_adsorbate")


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: of the panel. kind: of panel. keys: W&B's names of the metrics, ``train/loss``. unit:
            of the vertical axis. x: "step", "time", or the key of a setting. group: key of a
            setting by which runs are averaged: mean and standard error.
    """

    title: str
    kind: Literal["line", "scatter", "media", "table"]
    keys: tuple[str, ...]
    unit: str = ""
    x: str = "step"
    group: str | None = None


@dataclass(frozen=True)
class Section:
    """Panels under one heading, in ``columns`` columns."""

    name: str
    panels: list[Panel] = field(default_factory=list)
    is_open: bool = False
    columns: int = 4


def sections(
    splits: Sequence[str] = OC20_SPLITS,
    metrics: Sequence[str] = OC20_METRICS,
    evaluated: Sequence[str] = (),
    curvature: str = "ndem_curvature_eV_per_A2",
    change: str | None = "eV_per_A",
) -> list[Section]:
    """All sections.

    Args:
        splits: validation splits as logged; the last one with a mean is shown first.
        metrics: names as they are logged.
        evaluated: splits of ``ndem eval`` whose tables ``ndem report --wandb`` logs.
        curvature: name of the fitted curvature, which has the run's energy unit.
        change: unit in the names of the change of forces from second views; None if no run logs it.
    """
    shown = [describe(name) for name in metrics]
    main = "val_mean" if "val_mean" in splits else splits[0]
    first = [main, *(split for split in splits if split != main)]
    return [
        *(_validation(split, shown, is_open=split == main) for split in first),
        _over_time(first, shown),
        _arms(main, shown),
        *(_sweep(key, title, main, shown) for key, title in SWEPT.items()),
        _ndem(curvature),
        _recovered(),
        *([_second_views(change)] if change else []),
        _training(metrics),
        _cost(),
        _evaluation(evaluated or [split for split in splits if split != "val_mean"]),
    ]


def _unit(metric: Metric) -> str:
    """The unit in W&B, which plots raw values: a percentage is a fraction there."""
    return metric.unit if metric.factor == 1 else "fraction"


def _validation(split: str, metrics: Sequence[Metric], is_open: bool) -> Section:
    name = {"val_mean": "mean of the splits", "val": "val (main)"}.get(split, split)
    panels = [Panel(m.title, "line", (f"{split}/{m.name}",), _unit(m)) for m in metrics]
    return Section(f"Validation: {name}", panels, is_open)


def _over_time(splits: Sequence[str], metrics: Sequence[Metric]) -> Section:
    panels = [
        Panel(f"{m.title}, {splits[0]}", "line", (f"{splits[0]}/{m.name}",), _unit(m), x="time")
        for m in metrics[:2]
    ]
    all_splits = [
        Panel(f"{m.title}, all splits", "line", tuple(f"{s}/{m.name}" for s in splits), _unit(m))
        for m in metrics
    ]
    return Section("Validation: over time, and all splits in one", [*panels, *all_splits])


def _arms(split: str, metrics: Sequence[Metric]) -> Section:
    panels = [
        Panel(f"{m.title}, {split}", "line", (f"{split}/{m.name}",), _unit(m), group=ARM)
        for m in metrics
    ]
    return Section("Arms: mean and standard error over seeds", panels, is_open=True)


def _sweep(key: str, title: str, split: str, metrics: Sequence[Metric]) -> Section:
    panels = []
    for metric in metrics[:2]:
        names = (f"{split}/{metric.name}",)
        panels.append(Panel(f"{metric.title} over steps", "line", names, _unit(metric), group=key))
        panels.append(Panel(f"{metric.title} at the end", "scatter", names, _unit(metric), x=key))
    return Section(f"Sweep, {title}", panels)


def _ndem(curvature: str) -> Section:
    return Section(
        "NDeM",
        [
            Panel("NDeM loss", "line", ("train/ndem_loss",)),
            Panel("Share of NDeM in the loss", "line", ("train/ndem_share_of_loss",)),
            Panel("Direction of the noise", "line", ("train/ndem_noise_cosine",), "cosine"),
            Panel("Fitted curvature", "line", (f"train/{curvature}",),
                  unit_text(curvature.removeprefix("ndem_curvature_")).replace("A2", "Å²")),
            Panel("Coefficient", "line", ("train/ndem_coefficient",)),
        ],
    )  # fmt: skip


def _recovered() -> Section:
    names = tuple(f"train/ndem_unrecovered_sigma_{n}of{QUARTERS}" for n in range(1, QUARTERS + 1))
    return Section(
        "NDeM: recovered noise as a function of sigma",
        [
            Panel("Noise not recovered, by quarter of sigma", "line", names, "error / size"),
            Panel(
                "Error of the recovered noise and size of the noise",
                "line",
                ("train/ndem_noise_error_A", "train/ndem_noise_size_A"),
                "A per moved atom",
            ),
            Panel("Sampled sigma", "line", ("train/ndem_sigma_A",), "A"),
        ],
        columns=3,
    )


def _second_views(unit: str) -> Section:
    names = (f"train/ndem_change_error_{unit}", f"train/ndem_change_size_{unit}")
    return Section(
        "Second views: the model's change of forces compared with the potential's",
        [
            Panel("Error, and size: the error of predicting no change", "line", names,
                  f"{unit_text(unit)} per displaced atom"),
            Panel("Slope of predicted over given change", "line", ("train/ndem_change_slope",)),
            Panel("Direction of the change", "line", ("train/ndem_change_cosine",), "cosine"),
            Panel("Displaced atoms", "line", ("train/ndem_share_of_atoms",), "share of the atoms"),
        ],
    )  # fmt: skip


def _training(metrics: Sequence[str]) -> Section:
    panels = [Panel("Loss", "line", ("train/loss",))]
    for metric in map(describe, metrics[:3]):
        panels.append(Panel(metric.title, "line", (f"train/{metric.name}",), _unit(metric)))
    panels.append(Panel("Learning rate", "line", ("train/lr",)))
    panels.append(Panel("Gradient norm before clipping", "line", ("train/grad_norm",)))
    return Section("Training", panels)


def _cost() -> Section:
    return Section(
        "Cost",
        [
            Panel("Time of a step", "line", ("train/s_per_step",), "s"),
            Panel("Throughput", "line", ("train/atoms_per_s",), "atoms / s"),
            Panel("Peak memory", "line", ("train/memory_GB",), "GB"),
            Panel("Waiting for data", "line", ("train/data_share_of_time",), "share of the step"),
            Panel("Second view", "line", ("train/ndem_share_of_time",), "share of both passes"),
        ],
    )


def _evaluation(splits: Sequence[str]) -> Section:
    panels = [Panel("Parity and errors by group", "media", ("eval/report",))]
    for split in splits:
        panels += [
            Panel(f"{split}: {name.replace('_', ' ')}", "table", (f"eval/{split}/{name}",))
            for name in GROUPINGS
        ]
    return Section("Evaluation (ndem eval, then ndem report --wandb)", panels, columns=2)
