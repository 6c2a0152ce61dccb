"""The results file of a case, whose runs may be done at different times and on several machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fairchem_kit.report.sweep_results import summary

#: Entries with one value per arm or kind of second views, which later runs add to.
_GROWING = ("config_hash", "cost_per_step", "other_views", "potential", "zero_force_mae")


class OtherRuns(Exception):
    """The runs in the file cannot be compared with new ones."""


def seeds_of(path: Path, arm: str) -> list[int]:
    """Seeds of an arm's runs in the file."""
    old = _read(path) or {"arms": {}}
    return [run["seed"] for run in old["arms"].get(arm, {"runs": []})["runs"]]


def check(path: Path, new: dict[str, Any]) -> None:
    """Check that runs can be added to a file, if it exists.

    Args:
        new: ``data``, ``hardware`` and ``config_hash`` of the runs, as
            :func:`fairchem_kit.report.sweep_results.collect` returns them.

    Raises:
        OtherRuns: they have other data, settings, or another version of torch.
    """
    old = _read(path)
    if old is None:
        return
    pairs = {
        "data": (old["data"], new["data"]),
        "torch": (old["hardware"]["torch"], new["hardware"]["torch"]),
    }
    for arm in old["config_hash"].keys() & new["config_hash"].keys():
        pairs[f"config_hash.{arm}"] = (old["config_hash"][arm], new["config_hash"][arm])
    other = [f"{key} ({was}, now {now})" for key, (was, now) in pairs.items() if was != now]
    if other:
        raise OtherRuns(
            f"{path}: the runs in it cannot be compared with new ones: {'; '.join(other)}. "
            "Move the file away to start anew."
        )


def add(path: Path, found: dict[str, Any]) -> None:
    """Write results in addition to the runs that the file has already.

    A run of the same arm and seed is replaced. A run without ``devices`` gets the processor of its
    file: times of different ones cannot be compared.

    Args:
        found: what :func:`fairchem_kit.report.sweep_results.collect` returns; arms may also have
            the evaluations that :func:`with_evaluations` adds.
    """
    old = _read(path)
    for results in filter(None, (old, found)):
        for arm in results["arms"].values():
            for run in arm["runs"]:
                run.setdefault("devices", [results["hardware"]["cpu"]])
    if old is not None:
        check(path, found)
        for key in _GROWING:
            if key in old or key in found:
                found[key] = {**old.get(key, {}), **found.get(key, {})}
        for name, arm in old["arms"].items():
            found["arms"][name] = _joined(arm, found["arms"].get(name), found["metrics"])
    found["seeds"] = sorted({run["seed"] for arm in found["arms"].values() for run in arm["runs"]})
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def with_evaluations(
    arm: dict[str, Any], evaluations: dict[str, list[dict[str, float]]]
) -> dict[str, Any]:
    """An arm with further measurements.

    Args:
        arm: with its ``runs``.
        evaluations: for each name, the metrics of each run.
    """
    return {
        **arm,
        **{
            name: {key: _over_runs([one[key] for one in values]) for key in values[0]}
            for name, values in evaluations.items()
        },
    }


def _over_runs(values: list[float]) -> dict[str, Any]:
    return {**summary(values), "runs": values}


def _joined(old: dict[str, Any], new: dict[str, Any] | None, metrics: list[str]) -> dict[str, Any]:
    """One arm with the runs of both, in the order of their seeds."""
    if new is None:
        return old
    by_seed = {**_by_seed(old), **_by_seed(new)}
    found = [by_seed[seed] for seed in sorted(by_seed)]
    runs = [run for run, _ in found]
    arm = {
        "overrides": new["overrides"],
        "runs": runs,
        "summary": {name: summary([run["test"][name] for run in runs]) for name in metrics},
    }
    shared = [name for name in _evaluations(new) if all(name in values for _, values in found)]
    return with_evaluations(arm, {name: [values[name] for _, values in found] for name in shared})


def _by_seed(arm: dict[str, Any]) -> dict[int, tuple[dict[str, Any], dict[str, Any]]]:
    """Each run and its evaluations, by seed."""
    return {
        run["seed"]: (
            run,
            {
                name: {key: values["runs"][number] for key, values in arm[name].items()}
                for name in _evaluations(arm)
            },
        )
        for number, run in enumerate(arm["runs"])
    }


def _evaluations(arm: dict[str, Any]) -> list[str]:
    return [name for name in arm if name not in ("overrides", "runs", "summary")]


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
