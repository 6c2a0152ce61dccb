"""The report's sections, in order."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from html import escape

import fairchem_kit
from fairchem_kit import markdown
from fairchem_kit.report.metrics import EFWT
from fairchem_kit.report.page import (
    about,
    by_group,
    curves,
    evaluated,
    html,
    ndem_curves,
    table,
)
from fairchem_kit.report.page.arm import method
from fairchem_kit.report.page.baseline import baseline_first, baseline_of
from fairchem_kit.report.page.cautions import cautions
from fairchem_kit.report.page.comparable import Arms, Sets
from fairchem_kit.report.page.evaluations import Evaluation
from fairchem_kit.report.page.runs import Run, arms_of, one_by_one
from fairchem_kit.words import counted

_BANDS = (
    "Lines are means over the runs of an arm. Bands are the 95 per cent confidence interval of the "
    "mean over its seeds (Student's t); for two seeds, the range between them; for one, none."
)
_SIGMA = (
    "How much of the noise the model recovers from the second view, by its sigma: the "
    "summed length of (recovered less true noise) over the summed length of the true noise, over "
    "the moved atoms. 0: all of it is recovered. 1: no better than predicting none. "
    "Larger noise stands out more from thermal displacements; a quarter of the range in which "
    "nothing is ever recovered teaches the model nothing."
)
_CHANGE = (
    "The model's change of forces from a structure to its displaced view, compared with the change "
    "given by the potential, over the displaced atoms: mean length of the difference, and mean "
    "length of the given change, which is the error of predicting no change; least-squares slope "
    "(1: perfect); mean cosine."
)
_TABLE_NOTE = (
    "Validation in training. Mean ± standard deviation over the runs of an arm, each at its best "
    "step (by its primary metric on val), with the moving average of the weights if the run has "
    "one. The mean of splits is an average over splits, not over their structures."
)
_EFWT_NOTE = (
    " EFwT: share of structures whose energy is within 0.02 eV and whose forces are within 0.03 "
    "eV/Å of the reference."
)
_TRAINING = (
    "Means since the last console line, from the model during training: with dropout if it has "
    "any, without the moving average, each batch before its step."
)


class Report:
    """The report on some runs: the page, and its table for other programs.

    Args:
        notes: sentences for the list of what is missing. title: of the page; default: the arms'
            names. compare: average the runs of an arm; else show every run separately. baseline:
            the arm with which others are compared; default: see :func:`baseline_of`.

    Raises:
        ReportError: for a baseline that is not an arm.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        evaluations: Sequence[Evaluation] = (),
        notes: Sequence[str] = (),
        title: str | None = None,
        compare: bool = True,
        baseline: str | None = None,
    ) -> None:
        arms = arms_of(runs) if compare else one_by_one(runs)
        self.baseline = baseline_of(arms, baseline)
        self.arms = baseline_first(arms, self.baseline.arm)
        self.runs = [run for members in self.arms.values() for run in members]
        self.evaluations = evaluations
        self.sets = Sets(self.arms)
        self.not_comparable = [*self.sets.notes, *by_group.notes(evaluations)]
        self.cautions = cautions(self.arms)
        self.metrics = table.metrics_of(runs)
        self.note = _TABLE_NOTE + _EFWT_NOTE * any(m.name == EFWT for m in self.metrics)
        self.head = table.header(self.metrics)
        self.rows = table.rows(self.arms, self.metrics, self.sets)
        self.paired = table.differences(self.arms, self.metrics, self.sets, self.baseline.arm)
        self.evaluated = evaluated.rows(self.arms, evaluations)
        self.missing = [*notes, *about.missing(self.arms, evaluations)]
        self.title = title or _title(self.arms)

    def markdown(self) -> str:
        """Warnings, the table, the arms and their differences."""
        marked = [f"> **Not comparable.** {note}\n" for note in self.not_comparable]
        marked += [f"> **Read with care.** {note}\n" for note in self.cautions]
        parts = [">\n".join(marked)] if marked else []
        parts.append(f"{markdown.table(self.head, self.rows)}\n\n{self.note}\n")
        parts.append("".join(f"- {arm}: {what}\n" for arm, what in self._captions()))
        if self._compared():
            parts.append(f"{self._compared()}\n")
        if self.paired[1]:
            parts.append(markdown.table(*self.paired) + "\n")
        if self.evaluated[1]:
            parts.append(f"{markdown.table(*self.evaluated)}\n\n{evaluated.NOTE}\n")
        return "\n".join(parts)

    def csv(self) -> str:
        """Every run and split, in full precision."""
        return table.as_csv(self.arms, self.metrics, self.sets)

    def page(self) -> str:
        """The HTML file; draws all figures."""
        arms, metrics, sets = self.arms, self.metrics, self.sets
        bands = _BANDS if len(self.runs) > 1 else ""
        costs = table.html(*about.cost_rows(arms, self.baseline.arm))
        sections = [
            ("Not comparable", html.notes(self.not_comparable, "warn")),
            ("Read with care", html.notes(self.cautions)),
            ("Result", self._result()),
            ("Not in this report", html.notes(self.missing)),
            ("Validation", _with(bands, curves.validation(arms, metrics, sets))),
            ("Over time", html.figures(curves.over_time(arms, metrics, sets))),
            ("Training", _with(_TRAINING, [("", curves.training(arms, metrics))])),
            ("NDeM", html.figures(ndem_curves.terms(arms))),
            ("Second views", _with(_CHANGE, [("", ndem_curves.second_views(arms))])),
            ("Noise recovered", _with(_SIGMA, [("", ndem_curves.recovered(arms))])),
            ("Errors by group", _by_group(arms, self.evaluations)),
            ("Cost", costs + html.figures(curves.costs(arms))),
            ("Runs", _runs(self.runs)),
        ]
        when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        runs = counted(len(self.runs), "run")
        subtitle = f"{runs}, written {when} by ndem_ocp {fairchem_kit.__version__}"
        return html.page(self.title, escape(subtitle), sections)

    def _captions(self) -> list[tuple[str, str]]:
        return [(arm, method(runs[0])) for arm, runs in self.arms.items()]

    def _compared(self) -> str:
        """The baseline of the comparison, or why there is none."""
        if self.baseline.arm is None or self.paired[1] or len(self.arms) < 2:
            return self.baseline.sentence
        why = "no run of another arm has its seed and its validation data"
        return f"{self.baseline.sentence} No differences: {why}."

    def _result(self) -> str:
        captions = html.definitions(self._captions())
        if not self.rows:
            return html.paragraph("No validation yet.") + captions + self._evaluated()
        text = table.html(self.head, self.rows) + html.paragraph(self.note) + self._evaluated()
        text += f"<h3>{'Arms' if len(self.arms) > 1 else 'Method'}</h3>{captions}"
        text += html.paragraph(self._compared()) if self._compared() else ""
        if not self.paired[1]:
            return text
        return f"{text}<h3>Differences, seed by seed</h3>{table.html(*self.paired)}"

    def _evaluated(self) -> str:
        if not self.evaluated[1]:
            return ""
        drawn = table.html(*self.evaluated)
        return f"<h3>Evaluation (ndem eval)</h3>{drawn}{html.paragraph(evaluated.NOTE)}"


def _title(arms: Arms) -> str:
    names = list(arms)
    return (
        " against ".join(names)
        if len(names) < 4
        else f"{counted(len(names), 'arm')}: {', '.join(names)}"
    )


def _with(text: str, groups: Sequence[tuple[str, Sequence[html.Figure]]]) -> str:
    drawn = html.grouped(groups)
    return (html.paragraph(text) if text else "") + drawn if drawn else ""


def _by_group(arms: Arms, evaluations: Sequence[Evaluation]) -> str:
    if not evaluations:
        return ""
    sources = sorted({(e.run.name, str(e.folder), e.weights) for e in evaluations})
    text = "; ".join(f"{name}: {folder}, weights: {weights}" for name, folder, weights in sources)
    groups = by_group.groups_of_figures(arms, evaluations)
    return html.paragraph(f"From the files of ndem eval ({text}).") + html.grouped(groups)


def _runs(runs: Sequence[Run]) -> str:
    cards = "".join(
        f"<div><h3>{escape(run.run_dir.name)}</h3>{html.definitions(about.facts(run))}"
        + (html.folded("configuration", about.config_text(run)) if run.config else "")
        + "</div>"
        for run in runs
    )
    return f'<div class="cards">{cards}</div>'
