"""A sweep file: one configuration, its arms and seeds, and where the runs are."""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from fairchem_kit.commands.options import seed_of
from fairchem_kit.config_names import plain_instead
from fairchem_kit.errors import UserError
from fairchem_kit.kinds import Kinds, wrong_kinds
from fairchem_kit.yaml_file import read_mapping

LOGS = "logs/ndem_ocp.HistoryLogger"
DONE = "finished.json"
RUN_ID = "train"  # of a run started by ndem sweep
KEYS = ("config", "seeds", "test", "grid", "arms", "overrides", "metrics", "about")


_KINDS: Kinds = {
    "config": (str, "a file"),
    "seeds": ((list, NoneType), "a list, such as [0, 1, 2]"),
    "test": (str, "a folder, or none"),
    "grid": ((dict, NoneType), "a mapping of keys to lists of values"),
    "grid.*": (list, "a list of values"),
    "arms": ((dict, NoneType), "a mapping of names to changed keys"),
    "arms.*": ((dict, NoneType), "a mapping"),
    "overrides": ((dict, NoneType), "a mapping of keys to values"),
    "metrics": (list, "a list of names"),
}


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
    for where, value, words in wrong_kinds(given, _KINDS):
        raise SweepError(f"{path}: {where} = {value!r} must be {words}.")
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
        seeds=_seeds(path, given),
        test=str(given["test"]),
        arms={name: {**common, **changes} for name, changes in arms.items()},
        metrics=list(given["metrics"]),
        about=str(given.get("about") or ""),
    )


def _seeds(path: Path, given: dict[str, Any]) -> list[int]:
    try:
        return [seed_of(str(value)) for value in given.get("seeds") or [0]]
    except argparse.ArgumentTypeError as error:
        raise SweepError(f"{path}: seeds: {error}.") from None


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


def runs_of(
    path: Path, out: Path, arms: Iterable[str], seeds: Iterable[int]
) -> list[tuple[str, int]]:
    """Every arm with every seed, the arms of the first seed first.

    Args:
        path: of the sweep file, for the message. out: folder of the runs.

    Raises:
        SweepError: two of them would have the same directory.
    """
    runs = [(arm, seed) for seed, arm in itertools.product(seeds, arms)]
    folders = Counter(run_directory(out, arm, seed) for arm, seed in runs)
    twice = next((folder for folder, count in folders.items() if count > 1), None)
    if twice is not None:
        raise SweepError(
            f"{path}: two runs would be written to {twice}. Give each seed once, and arms names "
            "that differ in more than / and _."
        )
    return runs
