"""Tables on second views, from results/second_views_*.json."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from ndem_ocp.bench.experiments.second_views_cases import CASES, Case, Molecule, Surfaces
from ndem_ocp.bench.pages.molecules import paired, relative_change
from ndem_ocp.bench.pages.table import NOT_RUN, read, spread, table

ARMS = {
    "plain": "plain",
    "instead": "**second views**",
    "ndem": "NDeM, λ = 1",
    "forces_only": "second views¹",
    "corrected": "second views¹ of the corrected potential",
    "small": "second views¹ of the corrected potential, sigma 0.005 to 0.02 Å",
    "late": "second views¹ of the corrected potential, none in the last fifth",
    "trust": "second views¹ of the corrected potential, trust 0.7 kcal/mol/Å",
    "alone": "second views¹ without a potential",
    "first_order": "first order, without a potential",
    "pretrained": "pre-trained on the potential's forces",
    "dens": "DeNS",
}
NO_ENERGIES = "¹ Displaced structures without energy labels. "
OF_POTENTIAL = {
    "views": "the potential itself, scaled",
    "corrected": "the corrected potential itself",
    "alone": "the energy fitted to the data alone, itself",
}
NO_FORCE = "predicting no force"
COSTS_SHOWN = ("instead", "ndem", "dens")  # those of the other second views are the same


def molecules(results: Path) -> str:
    """Plain, NDeM and second views at equal cost of training, with one row per arm."""
    cases = [case for case in CASES if isinstance(case, Molecule)]
    what = (
        "Small TorchMD-NET ET (32 channels, 2 layers, gradient forces), original MD17 labels, 50 "
        "frames for validation, errors on 1,000 others (of the potentials themselves: 200). A "
        "budget of 1 is 3,120 plain steps of 8 frames; every arm has its own learning-rate "
        "schedule."
    )
    return _table(results, cases, "kcal/mol", what)


def summary(results: Path) -> str:
    """Force errors of plain training, second views and NDeM, with one row per case."""
    columns = (("plain",), ("corrected", "small", "instead"), ("alone",), ("ndem",))
    head = ["data", "unit", "plain", "**second views** of a potential", "... of an energy fitted "
            "to the same frames", "NDeM, λ = 1", "seeds"]  # fmt: skip
    rows, sources = [], []
    for case in sorted(CASES, key=lambda case: isinstance(case, Surfaces)):
        name = f"second_views_{case.name}"
        found = read(results, name)
        arms = found["arms"] if found else {}
        shown = [next((arm for arm in names if arm in arms), None) for names in columns]
        if "plain" not in arms or not any(shown[1:]):
            continue
        unit, digits = ("kcal/mol/Å", 3) if isinstance(case, Molecule) else ("eV/Å", 4)
        cells = [_force_error(arms, arm, case.metrics[0], digits) for arm in shown]
        seeds = sorted({len(arms[arm]["runs"]) for arm in shown if arm})
        rows.append([case.title, unit, *cells, " or ".join(map(str, seeds))])
        sources.append(f"[{name}](results/{name}.json)")
    note = (
        "Force MAE on frames that were not trained on, at equal cost of training; mean ± standard "
        "deviation over seeds, and the change to plain training seed by seed. Small models on a "
        "CPU; a budget of 1 is 3,120 plain steps of 8 frames, about four minutes for ethanol. "
        f"{_costs(results)}Source: {', '.join(sources)}."
    )
    return f"{table(head, rows)}\n\n{note}" if rows else NOT_RUN


def _force_error(arms: dict[str, Any], arm: str | None, metric: str, digits: int) -> str:
    if arm is None:
        return NOT_RUN
    error = spread(arms[arm]["summary"][metric], digits)
    change = relative_change(arms[arm], arms["plain"], metric)
    return error if arm == "plain" or change is None else f"{error} ({100 * change:+.0f} %)"


def _costs(results: Path) -> str:
    """How many plain steps a step was taken for, and how many it was when measured; a space."""
    found = read(results, "second_views_cost")
    if found is None:
        return ""
    parts = []
    for case in found["cases"].values():
        steps = (
            f"{_in_text(arm)} {each['assumed']:g} ({each['ratio']['median']:.2f})"
            for arm, each in case["arms"].items()
            if arm in COSTS_SHOWN
        )
        parts.append(f"{case['title']}: {', '.join(steps)}")
    link = "[measured](results/second_views_cost.json)"
    return (
        "The number of steps of each arm was set from an assumed cost of one step, in plain steps "
        f"(in brackets the cost that was {link} later): {'; '.join(parts)}. "
    )


def surfaces(results: Path) -> str:
    """Plain, NDeM, DeNS and second views for surfaces, with one row per arm."""
    cases = [case for case in CASES if isinstance(case, Surfaces)]
    what = (
        "Small EquiformerV2 (32 channels, 2 layers, L = 2, direct forces), batches of 4 frames "
        "drawn at random from relaxations of six systems; errors on all other frames of these "
        "systems. Energies are relative to the last frame of each relaxation."
    )
    return _table(results, cases, "eV", what)


def relaxations(results: Path) -> str:
    """Models for surfaces in use: errors on new systems, and relaxations."""
    head = ["data", "arm", "force MAE on new systems (eV/Å)", "distance from DFT's end (Å)",
            "of the start", "energy MAE at the end (eV)", "converged", "seeds"]  # fmt: skip
    rows, sources = [], []
    for case in (case for case in CASES if isinstance(case, Surfaces)):
        name = f"second_views_{case.name}"
        found = read(results, name)
        if found is None:
            continue
        if "zero_force_mae" in found:
            nothing = found["zero_force_mae"]["new_systems"]
            rows.append([case.title, NO_FORCE, f"{nothing:.4f}", *[""] * 5])
        for arm in case.arms:
            values = found["arms"].get(arm, {})
            if "relaxations" not in values:
                continue
            ends = values["relaxations"]
            rows.append([
                case.title, ARMS[arm], spread(values["new_systems"]["forces_mae"], 4),
                spread(ends["end_distance"]), f"{ends['start_distance']['mean']:.3f}",
                spread(ends["energy_mae"]), f"{100 * ends['converged']['mean']:.0f} %",
                len(values["runs"]),
            ])  # fmt: skip
            sources.append(f"[{name}](results/{name}.json)")
    if not rows:
        return NOT_RUN
    text = table(head, rows)
    note = (
        "New systems: all frames of four relaxations of other surfaces and adsorbates. "
        "Relaxations: the six systems of the training frames from their initial structures, at "
        "most 200 steps of L-BFGS, converged below 0.05 eV/Å. Distance: mean over the free atoms. "
        f"Mean ± standard deviation over seeds; {', '.join(dict.fromkeys(sources))}."
    )
    return f"{text}\n\n{note}" if sources else text


def _table(results: Path, cases: list[Case], unit: str, what: str) -> str:
    head = ["data", "arm", "steps", "processor time (s)", f"force MAE ({unit}/Å)", "to plain",
            f"energy MAE ({unit})", "error of dF", "seeds"]  # fmt: skip
    rows, sources, missing = [], [], []
    for case in cases:
        name = f"second_views_{case.name}"
        found = read(results, name)
        if found is None or "plain" not in found["arms"]:
            missing.append(case.title)
            continue
        arms = [arm for arm in case.arms if arm in found["arms"]]
        if others := [_in_text(arm) for arm in case.arms if arm not in arms]:
            missing.append(f"{case.title} ({', '.join(others)})")
        digits = 4 if unit == "eV" else 3
        if "zero_force_mae" in found:
            nothing = found["zero_force_mae"]["test"]
            rows.append([case.title, NO_FORCE, "", "", f"{nothing:.{digits}f}", *[""] * 4])
        rows += [_row(case, arm, found["arms"], digits) for arm in arms]
        for key, text in OF_POTENTIAL.items():
            if key in found.get("potential", {}):
                error = found["potential"][key]["forces_mae"]
                rows.append([case.title, text, "", "", f"{error:.{digits}f}", *[""] * 4])
        sources.append((name, found))
    if not sources:
        return _not_run(missing)
    text = table(head, rows)
    return "\n\n".join(filter(None, [text, _note(sources, what), _not_run(missing)]))


def _not_run(cases: list[str]) -> str:
    return f"These were not run: {'; '.join(cases)}." if cases else ""


def _in_text(arm: str) -> str:
    return ARMS[arm].replace("*", "")


def _row(case: Case, arm: str, arms: dict[str, dict[str, Any]], digits: int) -> list[Any]:
    values, plain = arms[arm], arms["plain"]
    forces, energy = case.metrics[:2]
    runs = values["runs"]
    steps = sorted({f"{run['steps']:,}" for run in runs})
    summary = values["summary"]
    change = relative_change(values, plain, forces)
    difference = (
        ""
        if change is None
        else (f"{100 * change:+.0f} % ({paired(values, plain, forces, digits)})")
    )
    return [
        case.title,
        ARMS[arm],
        " to ".join(steps),
        f"{statistics.mean(run['process_s'] for run in runs):.0f}",
        spread(summary[forces], digits),
        "" if arm == "plain" else difference,
        spread(summary[energy]),
        _curvature(values),
        len(runs),
    ]


def _curvature(values: dict[str, Any]) -> str:
    """Relative error of a model's change of forces between near frames of the test set."""
    found = values.get("curvature", {}).get("force_change_error")
    if found is None:
        return NOT_RUN
    spread_of = "" if found["stdev"] is None else f" ± {100 * found['stdev']:.1f}"
    return f"{100 * found['mean']:.1f}{spread_of} %"


def _note(sources: list[tuple[str, dict[str, Any]]], what: str) -> str:
    first = sources[0][1]
    commits = sorted(
        {commit[:10] for _, found in sources for arm in found["arms"].values()
         for run in arm["runs"] for commit in run.get("commits", [])}
    )  # fmt: skip
    processors = [name for _, found in sources for arm in found["arms"].values()
                  for run in arm["runs"]
                  for name in run.get("devices", [found["hardware"]["cpu"]])]  # fmt: skip
    processors = list(dict.fromkeys(processors))
    apart = ", whose times cannot be compared" if processors[1:] else ""
    made_of = first["second_views"]["made_of"]["calculator"]
    links = ", ".join(f"[{name}](results/{name}.json)" for name, _ in sources)
    without = any("¹" in ARMS[arm] for _, found in sources for arm in found["arms"])
    return (
        f"{NO_ENERGIES if without else ''}"
        f"Mean ± standard deviation over seeds; in brackets the difference seed by seed. {what} "
        "Error of dF: |dF_predicted - dF| / |dF| over pairs of near frames of the test set "
        "(`ndem eval --curvature`). "
        f"Potential: {made_of['package']} {made_of['version']}, `{_call(made_of['spec'])}`. "
        f"{' or '.join(processors)}{apart}; one thread per run on machines shared with other work, "
        f"torch {first['hardware']['torch']}, {_commits(commits)}; {links}."
    )


def _commits(commits: list[str]) -> str:
    few = 3
    return f"{len(commits)} commits" if len(commits) > few else f"commit {', '.join(commits)}"


def _call(spec: str) -> str:
    return spec.partition(":")[2]


SECOND_VIEWS_TABLES = {
    "second_views_summary": summary,
    "second_views": molecules,
    "second_views_surfaces": surfaces,
    "second_views_relaxations": relaxations,
}
