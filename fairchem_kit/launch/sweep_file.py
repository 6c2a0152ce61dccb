"""A sweep file: one configuration, its arms and seeds, and where the runs are."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairchem_kit.config_names import plain_instead
from fairchem_kit.errors import UserError
from fairchem_kit.yaml_file import read_mapping

LOGS = "logs/ndem_ocp.HistoryLogger"
DONE = "finished.json"
RUN_ID = "train"  # of a run started by ndem sweep
KEYS = ("config", "seeds", "test", "grid", "arms", "overrides", "metrics", "about")


class SweepError(UserError, RuntimeError):
    """A sweep file is wrong or one of its runs failed; the message names the file or the log."""


@dataclass(frozen=True)
class Sweep:
    """The content of a sweep file."""

    path: Path
    config: Path
    seeds: list[int]
    test: str
    arms: dict[str, dict[str, Any]]  # name -> overrides of the configuration
    metrics: list[str]
    about: str


def read_sweep(path: Path) -> Sweep:
    """Read and check a sweep file.

    Raises:
        SweepError: naming the file and the key.
    """
    given = read_mapping(path, SweepError, f"a sweep file (keys: {', '.join(KEYS)})")
    for key in given:
        if key not in KEYS:
            raise SweepError(f"{path}: unknown key {key!r}. Valid: {', '.join(KEYS)}.")
    for key in ("config", "test", "metrics"):
        if not given.get(key):
            raise SweepError(f"{path}: the key {key!r} is missing.")
    config = (path.parent / given["config"]).resolve()
    if not config.is_file():
        raise SweepError(
            f"{path}: config = {given['config']!r}: no such file: {config}.{plain_instead(config)}"
        )
    common = given.get("overrides") or {}
    arms = _arms(path, given)
    return Sweep(
        path=path,
        config=config,
        seeds=[int(seed) for seed in given.get("seeds") or [0]],
        test=str(given["test"]),
        arms={name: {**common, **changes} for name, changes in arms.items()},
        metrics=list(given["metrics"]),
        about=str(given.get("about") or ""),
    )


def _arms(path: Path, given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    grid, arms = given.get("grid"), given.get("arms")
    if bool(grid) == bool(arms):
        raise SweepError(f"{path}: give either grid: or arms:.")
    if arms:
        return {str(name): dict(changes or {}) for name, changes in arms.items()}
    names = [key.rsplit(".", 1)[-1] for key in grid]
    return {
        ",".join(f"{name}={value}" for name, value in zip(names, values)): dict(zip(grid, values))
        for values in itertools.product(*grid.values())
    }


def run_directory(out: Path, arm: str, seed: int) -> Path:
    return out / f"{arm.replace('/', '_')}-seed{seed}"
