"""Second views against plain training and the paper's NDeM at equal processor time: the queue.

    python benchmarks/second_views.py --list
    python benchmarks/second_views.py --md17 FOLDER --calculator SPEC      # all that is not done
    python benchmarks/second_views.py --md17 FOLDER --calculator SPEC --cases ethanol_100_x4

FOLDER holds rmd17_MOLECULE_train_01.npz and rmd17_MOLECULE_test_01.npz. Runs are made one after
another on one thread. Stopped at any moment, the same command continues within the run that was
stopped; results/second_views_CASE.json is written after each run.

A case is a molecule, a number of frames and a budget: so many times the 3,120 steps of eight that
the first comparison had. Plain training always takes the whole budget, with a schedule of that
length; an arm whose step costs more takes fewer steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ndem_ocp.report.sweep_results import collect
from ndem_ocp.second_views.sidecar import read_meta
from ndem_ocp.sweep import DONE, Sweep, run_directory, train_and_test

ROOT = Path(__file__).resolve().parents[1]
STEPS = 3120  # of a budget of 1
VALIDATIONS = 24  # of a run
VAL, TEST = 50, 1000  # frames
METRICS = ["forces_mae_kcal_per_mol_A", "energy_mae_kcal_per_mol", "forces_cosine_similarity"]
VIEWS = {
    "task.ndem.target": "second_views",
    "task.ndem.sigma_min": 0.02,
    "task.ndem.sigma_max": 0.05,
}


@dataclass(frozen=True)
class Arm:
    """Changes of the plain configuration, and how many plain steps one of its steps costs."""

    changes: dict[str, Any]
    cost: float = 1.0


ARMS = {
    "plain": Arm({"task.ndem.coefficient": 0}),
    "instead": Arm({**VIEWS, "task.ndem.share": 0.6}),
    "ndem": Arm({"task.ndem.sigma_max": 0.05}, cost=1.6),
    "first_order": Arm(
        {"task.ndem.target": "first_order", "task.ndem.sigma_max": 0.02, "task.ndem.share": 0.25}
    ),
}


@dataclass(frozen=True)
class Case:
    """One comparison."""

    molecule: str
    frames: int
    budget: float
    arms: tuple[str, ...] = ("plain", "instead", "ndem")
    draws: int = 64

    @property
    def name(self) -> str:
        return f"{self.molecule}_{self.frames}_x{self.budget:g}"

    @property
    def data(self) -> str:
        return f"data/second_views/{self.molecule}_{self.frames}"


CASES = [
    Case("ethanol", 50, 2),
    Case("aspirin", 50, 1),
    Case("ethanol", 100, 4),
    Case("aspirin", 100, 2),
    Case("ethanol", 100, 1, ("plain", "instead", "first_order")),
    Case("ethanol", 300, 4, draws=32),
    Case("aspirin", 300, 4, draws=32),
    Case("ethanol", 100, 16),
    Case("ethanol", 950, 4, draws=16),
    Case("aspirin", 950, 4, draws=16),
]


def main() -> int:
    args = _arguments()
    chosen = [case for case in CASES if not args.cases or case.name in args.cases]
    if args.list:
        for case in chosen:
            print(f"{case.name:20s} {', '.join(case.arms):40s} {_state(case, args)}")
        return 0
    os.chdir(ROOT)
    for case in chosen:
        make_data(case, args)
        for seed in args.seeds:
            for arm in case.arms:
                if not args.arms or arm in args.arms:
                    run(case, arm, seed, args)
    return 0


def _arguments() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--md17", type=Path, help="folder with the npz files of revised MD17")
    parser.add_argument("--calculator", help="potential of the second views")
    parser.add_argument("--cases", nargs="+", help="only these")
    parser.add_argument("--arms", nargs="+", help="only these")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--list", action="store_true", help="what there is, and what is done")
    return parser.parse_args()


def _state(case: Case, args: Namespace) -> str:
    done = sum(
        (run_directory(_out(case), arm, seed) / DONE).exists()
        for arm in case.arms
        for seed in args.seeds
    )
    return f"{done} of {len(case.arms) * len(args.seeds)} runs done"


def _out(case: Case) -> Path:
    return ROOT / "runs/second_views" / case.name


def make_data(case: Case, args: Namespace) -> None:
    """The data set and the second views of its training frames, once."""
    if not (ROOT / case.data).exists():
        files = [args.md17 / f"rmd17_{case.molecule}_{part}_01.npz" for part in ("train", "test")]
        _ndem(
            "data", "md17", files[0], "--test-file", files[1], "--labels", "original",
            "--train", case.frames, "--val", VAL, "--test", TEST, "--out", case.data,
        )  # fmt: skip
    views = ROOT / f"{case.data}.views.lmdb"
    if not views.exists() or not read_meta(views).get("complete"):
        _ndem(
            "data", "second-views", f"{case.data}/train", "--calculator", args.calculator,
            "--draws", case.draws, "--sigma", 0.005, 0.08, "--out", views,
        )  # fmt: skip


def _ndem(*words: object) -> None:
    command = [str(Path(sys.executable).parent / "ndem"), *map(str, words)]
    subprocess.run(command, check=True, env={"OMP_NUM_THREADS": "1", **os.environ})


def sweep_of(case: Case) -> Sweep:
    """The case as a sweep: every arm's overrides, with its number of epochs."""
    return Sweep(
        path=Path(__file__).resolve(),
        config=ROOT / "configs/md17/small_ndem.yml",
        seeds=[0, 1, 2],
        test=f"{case.data}/test",
        arms={name: _overrides(case, ARMS[name]) for name in case.arms},
        metrics=METRICS,
        about=f"Small ET (32 channels, 2 layers, gradient forces) on {case.frames} frames of "
        f"{case.molecule}, budget of {case.budget * STEPS:,.0f} plain steps",
    )


def _overrides(case: Case, arm: Arm) -> dict[str, Any]:
    steps_per_epoch = -(-case.frames // 8)
    epochs = max(1, round(case.budget * STEPS / arm.cost / steps_per_epoch))
    every = max(1, epochs // VALIDATIONS)
    views = {"task.ndem.second_views": f"{case.data}.views.lmdb"}
    return {
        "dataset.train.src": f"{case.data}/train",
        "dataset.val.src": f"{case.data}/val",
        "optim.max_epochs": epochs,
        "optim.eval_every": every * steps_per_epoch,
        "optim.scheduler_params.warmup_epochs": max(1, round(0.04 * epochs)),
        "logger.inner": None,
        "hide_eval_progressbar": True,
        **arm.changes,
        **(views if arm.changes.get("task.ndem.target") == "second_views" else {}),
    }


def run(case: Case, arm: str, seed: int, args: Namespace) -> None:
    """One training and its test, if it is not done, and the case's result so far."""
    sweep, out = sweep_of(case), _out(case)
    print(f"{case.name}: {arm}, seed {seed}", flush=True)
    train_and_test(sweep, out, arm, seed)
    for seeds in (args.seeds, [seed]):
        complete = [
            name
            for name in case.arms
            if all((run_directory(out, name, each) / DONE).exists() for each in seeds)
        ]
        if "plain" in complete:
            break
    if not complete:
        return
    seeds = [
        each
        for each in args.seeds
        if all((run_directory(out, name, each) / DONE).exists() for name in complete)
    ]
    found = collect(sweep, out, complete, seeds, [])
    meta = read_meta(ROOT / f"{case.data}.views.lmdb")
    found["second_views"] = {
        key: meta[key] for key in ("made_of", "scale", "relative_error", "structures", "counts")
    }
    found["cost_per_step"] = {name: ARMS[name].cost for name in complete}
    path = ROOT / f"results/second_views_{case.name}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
