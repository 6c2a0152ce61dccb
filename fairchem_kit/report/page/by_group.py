"""Figures of evaluations: parity, and errors by element, by size of the force, by adsorbate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fairchem_kit.evaluation import Samples
from fairchem_kit.report.page import figures
from fairchem_kit.report.page.comparable import Arms, Member, different, letters, titled
from fairchem_kit.report.page.evaluations import (
    MOST_GROUPS,
    Evaluation,
    Groups,
    by_adsorbate,
    by_element,
    by_force,
)
from fairchem_kit.report.page.figures import Figure, bar_figure, parity_figure
from fairchem_kit.words import counted

_MOST_POINTS = 200_000
NO_FORCE = "predicting zero forces"


def groups_of_figures(
    arms: Arms, evaluations: Sequence[Evaluation]
) -> list[tuple[str, list[Figure]]]:
    """(split, its figures); parity is of each arm's first run, errors are means over its runs.

    Evaluations of different data under the same split name get separate figures.
    """
    groups = []
    for split, letter, members in evaluated(evaluations):
        found = {
            arm: [e.samples(split) for run in runs for e in members if e.run is run]
            for arm, runs in arms.items()
        }
        first = next(e for runs in arms.values() for run in runs for e in members if e.run is run)
        groups.append((titled(split, letter), _figures(found, first)))
    return groups


def notes(evaluations: Sequence[Evaluation]) -> list[str]:
    """A sentence for each split whose evaluations have different data or units."""
    found = []
    for split in _splits(evaluations):
        members = [_member(e, split) for e in evaluations if split in e.splits]
        names = letters([member.identity for member in members])
        if len(names) > 1:
            found.append(different(f"ndem eval, {split}", members, names))
    return found


def _splits(evaluations: Sequence[Evaluation]) -> list[str]:
    return list(dict.fromkeys(name for e in evaluations for name in e.splits))


def evaluated(evaluations: Sequence[Evaluation]) -> Iterator[tuple[str, str, list[Evaluation]]]:
    """(split, letter of its set, the evaluations on it)."""
    for split in _splits(evaluations):
        members = [e for e in evaluations if split in e.splits]
        of = {id(e): _member(e, split).identity for e in members}
        for identity, letter in letters(list(of.values())).items():
            yield split, letter, [e for e in members if of[id(e)] == identity]


def _member(evaluation: Evaluation, split: str) -> Member:
    about = evaluation.about["splits"][split]
    units = evaluation.about.get("units") or {}
    given = ", ".join(f"{name} in {unit}" for name, unit in sorted(units.items()))
    content = about.get("data_hash") or f"path {about.get('path')}"
    description = (
        f"{about.get('path')}, {counted(about.get('structures') or 0, 'structure')}, content "
    )
    description += f"{about.get('data_hash') or 'not recorded'}" + (f", {given}" if given else "")
    return Member(evaluation.run.name, (str(content), given), description)


def _figures(found: dict[str, list[Samples]], first: Evaluation) -> list[Figure]:
    drawn: list[Figure | None] = []
    several = sum(bool(samples) for samples in found.values()) > 1
    for arm, samples in found.items():
        if samples:
            drawn += _parities(samples[0], f" ({arm})" if several else "", first)
    unit = f"force MAE ({first.unit('forces')})"
    with_atoms = {
        arm: [s for s in samples if s.atoms and s.atoms["free"].any()]
        for arm, samples in found.items()
    }
    drawn += [
        _bars("Error by element", with_atoms, by_element, unit),
        _bars("Error by size of the true force", with_atoms, by_force, unit,
              xlabel=f"size of the true force ({first.unit('forces')})"),
    ]  # fmt: skip
    for column, what, output in (
        ("force_mae", "Force", "forces"),
        ("energy_error", "Energy", "energy"),
    ):
        have = {a: [s for s in found[a] if column in s.columns] for a in found}
        drawn.append(
            _bars(
                f"{what} error by adsorbate",
                have,
                lambda samples, column=column: by_adsorbate(samples, column),
                f"{what.lower()} MAE ({first.unit(output)})",
            )
        )
    return [figure for figure in drawn if figure is not None]


def _parities(samples: Samples, name: str, first: Evaluation) -> list[Figure | None]:
    drawn = []
    if samples.atoms and samples.atoms["free"].any():
        free = samples.atoms["free"]
        label = samples.atoms["force_label"][free].ravel()
        predicted = samples.atoms["force_prediction"][free].ravel()
        drawn.append(_parity(f"Force components{name}", label, predicted, first.unit("forces")))
    for column in samples.columns:
        output = column.removesuffix("_label")
        if output != column and f"{output}_prediction" in samples.columns:
            label = samples.columns[column].astype(float)
            predicted = samples.columns[f"{output}_prediction"].astype(float)
            title = f"{output[0].upper()}{output[1:]}{name}"
            drawn.append(_parity(title, label, predicted, first.unit(output)))
    return drawn


def _parity(title: str, label: np.ndarray, predicted: np.ndarray, unit: str) -> Figure | None:
    error = np.abs(predicted - label)
    caption = (
        f"MAE {np.nanmean(error):.4g} {unit} over {counted(len(label), 'value')}."
        if len(label)
        else ""
    )
    if len(label) > _MOST_POINTS:
        chosen = np.random.default_rng(0).choice(len(label), _MOST_POINTS, replace=False)
        label, predicted = label[chosen], predicted[chosen]
        caption += f" Drawn: {_MOST_POINTS:,} of them, at random."
    return parity_figure(title, label, predicted, unit, caption)


def _bars(
    title: str,
    found: dict[str, list[Samples]],
    grouping: Callable[[Samples], Groups],
    label: str,
    xlabel: str = "",
) -> Figure | None:
    """Means over the runs of each arm; all groups of any arm, in the order of the first one."""
    made: dict[str, list[Groups]] = {a: [grouping(s) for s in found[a]] for a in found}
    arms = [arm for arm in made if any(len(groups.names) for groups in made[arm])]
    if not arms:
        return None
    reference = made[arms[0]][0]
    names = list(reference.names)
    dropped = ""
    if len(names) > MOST_GROUPS:
        kept = sorted(np.argsort(-reference.counts)[:MOST_GROUPS])
        dropped = f" The {MOST_GROUPS} most frequent of {len(names)}."
        names = [names[i] for i in kept]
    bars: dict[str, Any] = {}
    errors: dict[str, Any] = {}
    for arm in arms:
        rows = np.array([_row(groups, names) for groups in made[arm]])
        bars[arm] = rows.mean(0)
        errors[arm] = rows.std(0, ddof=1) if len(rows) > 1 else [None] * len(names)
    colours = [figures.colour(list(found).index(arm)) for arm in arms]
    if reference.nothing is not None:
        nothing = dict(zip(reference.names, reference.nothing))
        bars[NO_FORCE] = np.array([nothing[name] for name in names])
        errors[NO_FORCE] = [None] * len(names)
        colours.append("#bbbbbb")
    counts = dict(zip(reference.names, reference.counts))
    over = ", ".join(f"{name}: {counts[name]:,}" for name in names)
    what = "Structures" if reference.nothing is None else "Free atoms"
    return bar_figure(
        title, names, bars, label, colours=colours, errors=errors, xlabel=xlabel,
        caption=f"{what}: {over}.{dropped}",
    )  # fmt: skip


def _row(groups: Groups, names: Sequence[str]) -> list[float]:
    values = dict(zip(groups.names, groups.values))
    return [float(values.get(name, np.nan)) for name in names]
