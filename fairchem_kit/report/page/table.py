"""The table of a report: arms and splits in rows, as HTML, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from html import escape

from fairchem_kit.report.metrics import Metric, validation_metrics
from fairchem_kit.report.page.comparable import Arms, Sets, titled
from fairchem_kit.report.page.runs import Run
from fairchem_kit.report.page.series import Summary, cost, summary, value_at

MOST_METRICS = 4  # columns on the page; the CSV has all


def metrics_of(runs: Sequence[Run]) -> list[Metric]:
    """The validation metrics of the runs."""
    names = (
        key
        for run in runs
        for line in run.history
        if line["split"] not in ("train", "val_mean")
        for key in line
    )
    return validation_metrics(names)


def splits_of(runs: Sequence[Run]) -> list[str]:
    """Every validation split of any run; the mean last."""
    names = dict.fromkeys(name for run in runs for name in run.validation_splits)
    return sorted(names, key=lambda name: name == "val_mean")


def split_title(name: str) -> str:
    return {"val": "val (main)", "val_mean": "mean of splits"}.get(name, name)


def header(metrics: Sequence[Metric]) -> list[str]:
    shown = [metric.label for metric in metrics[:MOST_METRICS]]
    return ["arm", "runs", "best step", "split", *shown, "s/step"]


def rows(arms: Arms, metrics: Sequence[Metric], sets: Sets) -> list[list[str]]:
    """One row per arm, split and set: mean ± standard deviation over the runs, each at its best
    step."""
    table = []
    for arm, runs in arms.items():
        seconds = summary([cost(run, "s_per_step") for run in runs])
        first = True
        for split in splits_of(runs):
            for letter, members in sets.of(runs, split).items():
                values = [
                    summary([shown(run, split, metric) for run in members])
                    for metric in metrics[:MOST_METRICS]
                ]
                whole = first or len(members) < len(runs)
                table.append(
                    [
                        arm if first else "",
                        str(len(members)) if whole else "",
                        _steps(members) if whole else "",
                        titled(split_title(split), letter),
                        *(number(value) for value in values),
                        number(seconds) if first else "",
                    ]
                )
                first = False
    return table


def differences(
    arms: Arms, metrics: Sequence[Metric], sets: Sets, baseline: str | None
) -> tuple[list[str], list[list[str]]]:
    """Header and rows: each arm minus the baseline, seed by seed, which cancels the common effect
    of the seed. For the mean of splits if there is one, and for runs with the same set; no rows
    without common seeds."""
    runs = [run for members in arms.values() for run in members]
    split = "val_mean" if "val_mean" in splits_of(runs) else "val"
    chosen = metrics[:MOST_METRICS]
    base = {run.seed: run for run in arms.get(baseline or "", []) if run.seed is not None}
    body = []
    for arm in arms:
        pairs = [
            (base[run.seed], run)
            for run in arms[arm]
            if arm != baseline
            and run.seed in base
            and sets.letter(run, split) == sets.letter(base[run.seed], split)
        ]
        if not pairs:
            continue
        cells = []
        for metric in chosen:
            both = [(shown(a, split, metric), shown(b, split, metric)) for a, b in pairs]
            cells.append(
                number(summary([b - a for a, b in both if a is not None and b is not None]), "+")
            )
        body.append([f"{arm} minus {baseline}", str(len(pairs)), split_title(split), *cells])
    return ["arms", "seeds", "split", *(metric.label for metric in chosen)], body


def shown(run: Run, split: str, metric: Metric) -> float | None:
    """A metric of a split at the run's best step, in the unit of its column."""
    value = value_at(run, split, metric.name, run.best_step)
    return None if value is None else value * metric.factor


def number(value: Summary | None, sign: str = "") -> str:
    """0.123 ± 0.004; a dash if unknown. ``sign`` "+": show the sign of positive numbers too."""
    if value is None:
        return "-"
    if value.stdev is None:
        return f"{value.mean:{sign}.4g}"
    return f"{value.mean:{sign}.4g} ± {value.stdev:.2g}"


def _steps(runs: Sequence[Run]) -> str:
    """30 of 40: the best step, of the steps so far."""
    best = sorted({run.best_step for run in runs if run.best_step is not None})
    return f"{_range(best)} of {_range(sorted({run.steps for run in runs}))}"


def _range(steps: list[int]) -> str:
    return " to ".join(map(str, steps if len(steps) < 3 else (steps[0], steps[-1]))) or "-"


def without_empty_columns(
    head: Sequence[str], body: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """The same table without columns that are empty in every row."""
    kept = [n for n in range(len(head)) if any(row[n] not in ("", "-") for row in body)]
    return [head[n] for n in kept], [[row[n] for n in kept] for row in body]


def html(head: Sequence[str], body: Sequence[Sequence[str]], numeric_from: int = 1) -> str:
    """A table that scrolls sideways if it does not fit."""

    def cell(tag: str, index: int, text: str) -> str:
        kind = "" if index < numeric_from else ' class="n"'
        return f"<{tag}{kind}>{escape(text)}</{tag}>"

    lines = ["".join(cell("th", i, text) for i, text in enumerate(head))]
    lines += ["".join(cell("td", i, text) for i, text in enumerate(row)) for row in body]
    first, *rest = [f"<tr>{line}</tr>" for line in lines]
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="table, scrolls sideways">'
        f"<table><thead>{first}</thead><tbody>{''.join(rest)}</tbody></table></div>"
    )


def as_csv(arms: Arms, metrics: Sequence[Metric], sets: Sets) -> str:
    """One row per run and split, logged values in full precision, names with their units."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [metric.name for metric in metrics]
    costs = ("s_per_step", "atoms_per_s", "memory_GB", "ndem_share_of_time")
    writer.writerow(["arm", "run", "seed", "split", "set", "step", *names, *costs])
    for arm, runs in arms.items():
        for run in runs:
            for split in run.validation_splits:
                values = [value_at(run, split, name, run.best_step) for name in names]
                cells = [*values, *(cost(run, name) for name in costs)]
                writer.writerow(
                    [arm, run.run_dir.name, run.seed, split, sets.letter(run, split), run.best_step]
                    + ["" if value is None else value for value in cells]
                )
    return text.getvalue()
