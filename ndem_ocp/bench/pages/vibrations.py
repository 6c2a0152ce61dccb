"""The table of vibrational frequencies in docs/second_views.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ndem_ocp.bench.experiments.second_views_cases import CASES
from ndem_ocp.bench.pages.second_views import ARMS
from ndem_ocp.bench.pages.table import NOT_RUN, read, spread, table

NAME = "vibrations_ethanol"


def vibrations(results: Path) -> str:
    """Errors of the frequencies of plain models, of second views, and of their potential."""
    found = read(results, NAME)
    if found is None:
        return NOT_RUN
    bands = found["bands_invcm"]
    head = ["model", "trained on", "minima found", *(_title(*bands[band]) for band in bands),
            "distance of minima (Å)"]  # fmt: skip
    titles = {case.name: case.title for case in CASES}
    rows = [
        [ARMS[arm], titles[case], f"{len(arms[arm]['minima'])} of {len(arms[arm]['runs'])}",
         *(_error(arms, arm, band) for band in bands), _distance(_minima(arms[arm]))]
        for case, arms in found["cases"].items() for arm in arms
    ]  # fmt: skip
    potential = found["potential"]
    alone = [f"{potential['mae_invcm'][band]:.1f}" for band in bands]
    rows.append(["the potential itself", "", "", *alone, _distance([potential])])
    return f"{table(head, rows)}\n\n{_note(found)}"


def _minima(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of an arm whose structures are minima."""
    return [run for run in values["runs"] if run["seed"] in values["minima"]]


def _title(low: float, high: float) -> str:
    if low == 0:
        return "all modes" if high > 1e8 else f"below {high:g}"
    return f"above {low:g}" if high > 1e8 else f"{low:g} to {high:g}"


def _error(arms: dict[str, Any], arm: str, band: str) -> str:
    """Mean ± standard deviation in cm^-1, and the change to plain training."""
    summary, plain = arms[arm]["summary"].get(band), arms["plain"]["summary"].get(band)
    if summary is None:
        return ""
    if arm == "plain" or plain is None:
        return spread(summary, 1)
    return f"{spread(summary, 1)} ({100 * (summary['mean'] / plain['mean'] - 1):+.0f} %)"


def _distance(runs: list[dict[str, Any]]) -> str:
    """Mean over the conformers of all runs."""
    each = [one["distance_of_minima_A"] for run in runs for one in run["conformers"].values()]
    return f"{np.mean(each):.3f}" if each else ""


def _note(found: dict[str, Any]) -> str:
    reference, potential = found["reference"], found["potential"]["made_of"]
    conformers = reference["conformers"]
    modes = sum(len(each["frequencies_invcm"]) for each in conformers.values())
    both = " and ".join(conformers) + (" together" if len(conformers) > 1 else "")
    shifts = [each["d3_shifts_invcm"] for each in conformers.values()]
    dispersion = ""
    if all(shifts):
        size = np.abs(np.concatenate(shifts))
        dispersion = (
            f" D3(BJ) would change these frequencies by {size.mean():.1f} cm⁻¹ on average, at most "
            f"{size.max():.0f}."
        )
    packages = ", ".join(f"{name} {number}" for name, number in reference["packages"].items())
    return (
        "Mean absolute error of harmonic frequencies of ethanol in cm⁻¹, over the "
        f"{modes} modes of {both}, compared in increasing order; each model at its own "
        "minimum. Mean ± standard deviation over the seeds with a minimum (no imaginary frequency, "
        "relaxation converged); in brackets the change to plain training. "
        f"Reference: {reference['method']} ({packages}); the labels are PBE with the dispersion of "
        f"Tkatchenko and Scheffler.{dispersion} Potential: {potential['package']} "
        f"{potential['version']}, `{potential['spec'].partition(':')[2]}`. Commit "
        f"{found['commit'][:10]}; [{NAME}](results/{NAME}.json)."
    )
