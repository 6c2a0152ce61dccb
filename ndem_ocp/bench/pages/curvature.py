"""Tables on the change of forces between near frames: of data, of labels and of models.

They are made from results/curvature_*.json and results/second_views_*.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ndem_ocp.bench.experiments.second_views_cases import CASES, Case
from ndem_ocp.bench.pages.molecules import relative_change
from ndem_ocp.bench.pages.table import NOT_RUN, read, table

SHOWN = {"ethanol": "ethanol", "aspirin": "aspirin", "uracil": "uracil",
         "malonaldehyde": "malonaldehyde", "oc20": "OC20 relaxations"}  # fmt: skip
VIEWS = {
    "instead": "potential",
    "forces_only": "potential, no energy labels",
    "corrected": "potential corrected, no energy labels",
    "small": "potential corrected, no energy labels, sigma 0.005 to 0.02 Å",
    "late": "potential corrected, no energy labels, none in the last fifth",
    "trust": "potential corrected, no energy labels, trust 0.7 kcal/mol/Å",
    "alone": "fitted energy, no energy labels",
}


def curvature(results: Path) -> str:
    """How well the best isotropic curvature c, and potentials, predict the change of forces."""
    head = ["data", "pairs", "displacement (Å)", "what predicts dF", "error of dF", "median",
            "with s = 1", "best s (or c)", "error of F itself"]  # fmt: skip
    rows, sources = [], []
    for key, title in SHOWN.items():
        found = read(results, f"curvature_{key}")
        if found is None:
            rows.append([title, *[""] * 3, NOT_RUN, *[""] * 4])
            continue
        for each in found["found"]:
            bins = each["by_displacement"]
            rows.append(
                [
                    title,
                    each["pairs"],
                    f"{bins[0][0]:.2f} to {bins[-1][1]:.2f}",
                    _name(each["name"], found["unit"]),
                    _percent(each["relative_error"]),
                    _percent(each["median"]),
                    _percent(each["unscaled_error"]),
                    f"{each['scale']:.3g}",
                    _percent(each["forces_error"]),
                ]
            )
        sources.append(f"[curvature_{key}](results/curvature_{key}.json)")
    text = table(head, rows)
    note = (
        "Error: |dF_predicted - dF| / |dF| over the free atoms of all pairs of near frames, with "
        f"the scale that is best for it. All numbers: {', '.join(sources)}."
    )
    return f"{text}\n\n{note}" if sources else text


def _name(name: str, unit: str) -> str:
    call, comma, fitted = name.partition(", fitted")
    if call.endswith(")"):
        return f"`{call}`{comma}{fitted}"
    if not name.startswith("isotropic"):
        return name
    return f"isotropic, c in {unit.removesuffix('/A')}/Å²"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def labels(results: Path) -> str:
    """What views were worth, by the error of their labels and that of the plain model."""
    head = ["data", "views", "error of dF: labels", "plain model", "with views", "force MAE",
            "seeds"]  # fmt: skip
    rows, sources = [], []
    for case in CASES:
        name = f"second_views_{case.name}"
        found = read(results, name)
        if found is None or "plain" not in found["arms"]:
            continue
        rows += [_worth(case, arm, found) for arm in case.arms if _has_views(case, arm, found)]
        sources.append(f"[{name}](results/{name}.json)")
    if not rows:
        return NOT_RUN
    note = (
        "Labels: error of the change of forces over pairs of near training frames; for a corrected "
        "potential or a fitted energy, pairs left out of the fit. (Aspirin has too few near pairs: "
        "for its fits pairs up to 1.2 Å apart, and that of the corrected potential is rescaled to "
        "near ones.) Models: over pairs of the test "
        f"set. Force MAE: change to plain training. {', '.join(sources)}."
    )
    return f"{table(head, rows)}\n\n{note}"


def _has_views(case: Case, arm: str, found: dict[str, Any]) -> bool:
    return arm in found["arms"] and case.all_arms[arm].has_views


def _worth(case: Case, arm: str, found: dict[str, Any]) -> list[Any]:
    arms, metric = found["arms"], case.metrics[0]
    which = case.all_arms[arm].views
    views = found["second_views"] if which == "views" else found["other_views"][which]
    change = relative_change(arms[arm], arms["plain"], metric)
    errors = [arms[each]["curvature"]["force_change_error"]["mean"] for each in ("plain", arm)]
    return [
        case.title,
        VIEWS[arm],
        _percent(views["relative_error"]),
        *map(_percent, errors),
        "" if change is None else f"{100 * change:+.0f} %",
        len(arms[arm]["runs"]),
    ]


CURVATURE_TABLES = {"curvature": curvature, "second_views_labels": labels}
