"""The report's sections, in order."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from html import escape

import ndem_ocp
from ndem_ocp.report.page import about, curves, html, judged, table
from ndem_ocp.report.page.evaluations import Evaluation
from ndem_ocp.report.page.runs import Run, arms_of

_BANDS = (
    "Lines are means over the runs of an arm. Bands are the 95 per cent confidence interval of the "
    "mean over its seeds (Student's t); of two seeds, the range between them; of one, none."
)
_SIGMA = (
    "How much of the noise the second view recovers, by the sigma that it was drawn with: the "
    "summed length of (recovered less true noise) over the summed length of the true noise, over "
    "the atoms that were moved. 0: all of it is recovered. 1: no better than predicting none. "
    "Larger noise is easier to see against thermal displacements; a quarter of the range in which "
    "nothing is ever recovered trains the model on nothing."
)
_TABLE_NOTE = (
    "Mean ± standard deviation over the runs of an arm, each at its best step (by its primary "
    "metric on val). Validated with the moving average of the weights where the run has one. The "
    "mean of splits is over the splits, not over their structures."
)
_TRAINING = (
    "Means since the last console line, as the model was while it trained: with dropout, without "
    "the moving average, each batch before its step."
)


class Report:
    """What is written about some runs: a page, and the table of it for other programs.

    Args:
        notes: sentences for the list of what is missing.
        title: of the page; the arms' names without one.
        compare: join the runs of an arm; else every run stands for itself.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        evaluations: Sequence[Evaluation] = (),
        notes: Sequence[str] = (),
        title: str | None = None,
        compare: bool = True,
    ) -> None:
        self.arms = arms_of(runs) if compare else _one_by_one(runs)
        self.runs = [run for members in self.arms.values() for run in members]
        self.evaluations = evaluations
        self.metrics = table.metrics_of(runs)
        self.head, self.rows = table.header(self.metrics), table.rows(self.arms, self.metrics)
        self.paired = table.differences(self.arms, self.metrics)
        self.missing = [*notes, *about.missing(self.arms, evaluations)]
        self.title = title or _title(self.arms)

    def markdown(self) -> str:
        """The table and, of several arms, their differences."""
        text = f"{table.markdown(self.head, self.rows)}\n{_TABLE_NOTE}\n"
        return text + (f"\n{table.markdown(*self.paired)}" if self.paired[1] else "")

    def csv(self) -> str:
        """Every run and split, in full precision."""
        return table.as_csv(self.arms, self.metrics)

    def page(self) -> str:
        """The HTML file; draws all figures."""
        arms, metrics = self.arms, self.metrics
        bands = _BANDS if len(self.runs) > 1 else ""
        sections = [
            ("Result", self._result()),
            ("Not in this report", html.notes(self.missing)),
            ("Validation", _with(bands, curves.validation(arms, metrics))),
            ("Over time", html.figures(curves.over_time(arms, metrics))),
            ("Training", _with(_TRAINING, [("", curves.training(arms, metrics))])),
            ("NDeM", html.figures(curves.terms(arms))),
            ("Noise recovered", _with(_SIGMA, [("", curves.recovered(arms))])),
            ("Errors by group", _judged(arms, self.evaluations)),
            ("Cost", table.html(*about.cost_rows(arms)) + html.figures(curves.costs(arms))),
            ("Runs", _runs(self.runs)),
        ]
        when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        runs = f"{len(self.runs)} runs" if len(self.runs) > 1 else "1 run"
        subtitle = f"{runs}, written {when} by ndem_ocp {ndem_ocp.__version__}"
        return html.page(self.title, escape(subtitle), sections)

    def _result(self) -> str:
        if not self.rows:
            return html.paragraph("No validation yet.")
        text = table.html(self.head, self.rows) + html.paragraph(_TABLE_NOTE)
        if not self.paired[1]:
            return text
        return f"{text}<h3>Differences, seed by seed</h3>{table.html(*self.paired)}"


def _one_by_one(runs: Sequence[Run]) -> dict[str, list[Run]]:
    arms: dict[str, list[Run]] = {}
    for run in runs:
        name = run.name
        arms[name if name not in arms else f"{run.run_dir}/{run.run_id}"] = [run]
    return arms


def _title(arms: dict[str, list[Run]]) -> str:
    names = list(arms)
    return " against ".join(names) if len(names) < 4 else f"{len(names)} arms: {', '.join(names)}"


def _with(text: str, groups: Sequence[tuple[str, Sequence[html.Figure]]]) -> str:
    drawn = html.grouped(groups)
    return (html.paragraph(text) if text else "") + drawn if drawn else ""


def _judged(arms: dict[str, list[Run]], evaluations: Sequence[Evaluation]) -> str:
    if not evaluations:
        return ""
    told = sorted({(e.run.name, str(e.folder), e.weights) for e in evaluations})
    text = "; ".join(f"{name}: {folder}, weights: {weights}" for name, folder, weights in told)
    groups = judged.groups_of_figures(arms, evaluations)
    return html.paragraph(f"From the files of ndem eval ({text}).") + html.grouped(groups)


def _runs(runs: Sequence[Run]) -> str:
    cards = "".join(
        f"<div><h3>{escape(run.run_dir.name)}</h3>{html.definitions(about.facts(run))}"
        + (html.folded("configuration", about.config_text(run)) if run.config else "")
        + "</div>"
        for run in runs
    )
    return f'<div class="cards">{cards}</div>'
