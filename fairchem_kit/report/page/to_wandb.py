"""Logging evaluations to their W&B runs: the page, and errors by group as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fairchem_kit.report.page.build import Report
from fairchem_kit.report.page.evaluations import (
    Evaluation,
    Groups,
    by_adsorbate,
    by_element,
    by_force,
)


def log_evaluations(evaluations: Sequence[Evaluation]) -> list[str]:
    """Log each evaluation to its run; returns the runs' ids.

    ``eval/report`` is the run's report; ``eval/SPLIT/by_element``, ``by_force`` and
    ``by_adsorbate`` are tables; ``eval/SPLIT/METRIC`` are numbers in the run's summary. For an
    offline run an additional offline part is written (WANDB_MODE=offline), to be synced after the
    others.
    """
    by_run: dict[int, list[Evaluation]] = {}
    for evaluation in evaluations:
        by_run.setdefault(id(evaluation.run), []).append(evaluation)
    return [_log(own) for own in by_run.values()]


def _log(evaluations: Sequence[Evaluation]) -> str:
    """Log the evaluations of one run."""
    import wandb

    from fairchem_kit.history.wandb_mode import offline_if_need_be

    offline_if_need_be()
    run = evaluations[0].run
    logger = run.config.get("logger") or {}
    settings = logger if isinstance(logger, dict) else {}
    page = Report([run], evaluations).page()
    here = wandb.init(
        id=run.run_id,
        name=run.command.get("identifier"),
        dir=run.logs,
        project=settings.get("project"),
        entity=settings.get("entity"),
        group=settings.get("group"),
        resume="allow",
    )
    step = max(int(run.history[-1]["step"]) + 1, here.starting_step)
    try:
        tables = {name: t for evaluation in evaluations for name, t in _tables(evaluation).items()}
        here.log({"eval/report": wandb.Html(page, inject=False), **tables}, step=step)
        for evaluation in evaluations:
            for split, about in evaluation.about["splits"].items():
                for name, value in (about.get("metrics") or {}).items():
                    here.summary[f"eval/{split}/{name}"] = value
    finally:
        here.finish()
    return run.run_id


def _tables(evaluation: Evaluation) -> dict[str, Any]:
    tables = {}
    for split in evaluation.splits:
        samples = evaluation.samples(split)
        unit = evaluation.unit("forces")
        if samples.atoms and samples.atoms["free"].any():
            tables[f"eval/{split}/by_element"] = _table(by_element(samples), "element", unit)
            tables[f"eval/{split}/by_force"] = _table(
                by_force(samples), f"true force ({unit})", unit
            )
        if "force_mae" in samples.columns:
            groups = by_adsorbate(samples, "force_mae")
            if groups.names:
                tables[f"eval/{split}/by_adsorbate"] = _table(groups, "adsorbate", unit)
    return tables


def _table(groups: Groups, what: str, unit: str) -> Any:
    import wandb

    columns = [what, f"force MAE ({unit})", "count"]
    rows: list[Any] = [groups.names, groups.values.tolist(), groups.counts.tolist()]
    if groups.nothing is not None:
        columns.insert(2, f"predicting zero forces ({unit})")
        rows.insert(2, np.asarray(groups.nothing).tolist())
    return wandb.Table(columns=columns, data=[list(row) for row in zip(*rows)])
