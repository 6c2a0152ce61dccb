"""The table of evaluations: the errors that ``ndem eval`` found on each split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fairchem_kit.report.metrics import validation_metrics
from fairchem_kit.report.page.by_group import evaluated
from fairchem_kit.report.page.comparable import Arms, titled
from fairchem_kit.report.page.evaluations import Evaluation
from fairchem_kit.report.page.series import summary
from fairchem_kit.report.page.table import MOST_METRICS, number, without_empty_columns

NO_FORCE = "% of zero forces"
NOTE = (
    "Errors of the evaluated checkpoint on free atoms, as mean ± standard deviation over the runs "
    f'of an arm. "{NO_FORCE}": the force MAE as a share of the error of predicting zero forces; '
    "100 would be a model that has learned nothing."
)


def rows(arms: Arms, evaluations: Sequence[Evaluation]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one for each split, its set of data and arm."""
    names = [name for e in evaluations for split in e.splits for name in _metrics(e, split)]
    metrics = validation_metrics(names)[:MOST_METRICS]
    head = ["arm", "runs", "split", "structures", *(m.label for m in metrics), NO_FORCE]
    body = []
    for split, letter, members in evaluated(evaluations):
        for arm, runs in arms.items():
            here = [e for run in runs for e in members if e.run is run]
            if not here:
                continue
            values = [
                summary([_scaled(_metrics(e, split).get(m.name), m.factor) for e in here])
                for m in metrics
            ]
            shares = summary([_share_of_zero_forces(e, split) for e in here])
            body.append(
                [
                    arm,
                    str(len(here)),
                    titled(split, letter),
                    f"{here[0].about['splits'][split].get('structures') or '-'}",
                    *(number(value) for value in values),
                    number(shares),
                ]
            )
    return without_empty_columns(head, body)


def _metrics(evaluation: Evaluation, split: str) -> dict[str, float]:
    return evaluation.about["splits"][split].get("metrics") or {}


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _share_of_zero_forces(evaluation: Evaluation, split: str) -> float | None:
    """Per cent; None without forces."""
    samples = evaluation.samples(split)
    if not samples.atoms or not samples.atoms["free"].any():
        return None
    free = samples.atoms["free"]
    nothing = float(np.abs(samples.atoms["force_label"][free]).mean())
    return 100 * float(samples.force_error[free].mean()) / nothing if nothing else None
