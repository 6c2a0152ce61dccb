"""Compare second views, plain training and the paper's NDeM at equal processor time.

    python -m ndem_ocp.bench.experiments.second_views --list
    python -m ndem_ocp.bench.experiments.second_views --md17 FOLDER --calculator SPEC

The second command does all runs that results/ does not have yet, or with ``--cases ethanol_100_x4``
those of a case.

FOLDER contains rmd17_MOLECULE_train_01.npz and rmd17_MOLECULE_test_01.npz. Cases with surfaces need
``--oc20 FOLDER`` with trajectories of OC20 relaxations. If the potential needs its own environment,
make the second views there first. Runs are done one after another, or ``--jobs`` at a time, each on
one thread, on the CPU or with ``--gpu`` on a GPU. If interrupted,
the same command continues within the interrupted run. Each run is added to
results/second_views_CASE.json, so a case can be continued on another machine.

Cases and their arms are defined in second_views_cases.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.data.records import iter_structures
from fairchem_kit.data.statistics import dataset_statistics
from fairchem_kit.data.units import force_in_ev, units_of
from fairchem_kit.launch.sweep_file import DONE, RUN_ID, Sweep, run_directory
from fairchem_kit.provenance import provenance
from fairchem_kit.report.sweep_results import collect, hash_of_arm, hash_of_data
from ndem_ocp.bench.checkout import ROOT, in_checkout
from ndem_ocp.bench.experiments import results_file
from ndem_ocp.bench.experiments.second_views_cases import (
    CASES,
    VIEW_FILES,
    Case,
    Evaluation,
    Molecule,
    Pretraining,
)
from ndem_ocp.second_views.make import labeller
from ndem_ocp.second_views.sidecar import Sidecar, read_meta
from ndem_ocp.sweep import train_and_test

SEEDS = (0, 1, 2)
TEST_FRAMES = 200  # on which the potential itself is tested


def main() -> int:
    args = _arguments()
    os.chdir(ROOT)
    chosen = [case for case in CASES if not args.cases or case.name in args.cases]
    if args.list:
        for case in chosen:
            print(f"{case.name:28s} {', '.join(case.arms):40s} {_state(case, args)}")
        return 0
    for case in chosen:
        arms = [arm for arm in case.arms if not args.arms or arm in args.arms]
        make_data(case, args, arms)
        check_results(case, arms)
        todo = [(arm, seed) for seed in args.seeds for arm in arms if not is_done(case, arm, seed)]
        for arm in dict.fromkeys(arm for arm, _ in todo):
            overrides(case, arm, args.gpu)  # pre-trains, which is done once for all seeds
        with ThreadPoolExecutor(args.jobs) as pool:
            runs = [pool.submit(run, case, arm, seed, args.gpu) for arm, seed in todo]
            try:
                for each in as_completed(runs):
                    each.result()
                    write_results(case, args.calculator, args.gpu)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return 0


def _arguments() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--md17", type=Path, help="folder with the npz files of revised MD17")
    parser.add_argument("--oc20", type=Path, help="folder with OC20 trajectories (random*.traj)")
    parser.add_argument("--calculator", help="potential for the second views")
    parser.add_argument("--cases", nargs="+", help="only these")
    parser.add_argument("--arms", nargs="+", help="only these")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=1, metavar="N",
                        help="runs at the same time, each on one thread (default: 1)")  # fmt: skip
    parser.add_argument("--gpu", action="store_true", help="train on the GPU")
    parser.add_argument("--list", action="store_true", help="list cases and runs that are done")
    return parser.parse_args()


def _state(case: Case, args: Namespace) -> str:
    done = sum(is_done(case, arm, seed) for arm in case.arms for seed in args.seeds)
    return f"{done} of {len(case.arms) * len(args.seeds)} runs done"


def is_done(case: Case, arm: str, seed: int) -> bool:
    """Whether the results have this run."""
    return seed in results_file.seeds_of(results_path(case), arm)


def _out(case: Case) -> Path:
    return ROOT / "runs/second_views" / case.name


def make_data(case: Case, args: Namespace, arms: list[str]) -> None:
    """Make the data set and the second views of its training frames, unless they exist."""
    case.make(_ndem, args)
    needed = {case.all_arms[name].views for name in arms if name in case.arms}
    for which in sorted(needed | {"views"}):
        views = Path(case.views_file(which))
        calculator, correction = VIEW_FILES[which]
        if not views.exists() or not read_meta(views).get("complete"):
            _ndem(
                "data", "second-views", f"{case.data}/train",
                "--calculator", calculator or args.calculator, "--correction", correction,
                "--draws", case.draws, "--sigma", *case.sigma, "--out", views,
            )  # fmt: skip


def _ndem(*words: object) -> None:
    command = [str(Path(sys.executable).parent / "ndem"), *map(str, words)]
    subprocess.run(command, check=True, env={"OMP_NUM_THREADS": "1", **os.environ})


def sweep_of(case: Case, arms: dict[str, dict[str, Any]]) -> Sweep:
    """The runs of a case as a sweep, with the overrides of every arm."""
    return Sweep(
        path=Path(__file__).resolve(),
        config=ROOT / case.config,
        seeds=list(SEEDS),
        test=f"{case.data}/test",
        arms=arms,
        metrics=list(case.metrics),
        about=f"{case.about} on {case.title}; {case.plain_steps:,} plain steps",
    )


def pretrain(case: Case, first: Pretraining, gpu: bool) -> Path:
    """The checkpoint to start from; trained once, with seed 0, for all seeds of the runs."""
    if first.name == "potential":
        case.make_potential_set(_ndem)
    out, name = ROOT / "runs/second_views/pretraining", f"{case.name}_{first.name}"
    changes = {
        **case.settings(first.data, first.steps),
        **case.all_arms["plain"].changes,
        "dataset.val.src": f"{first.data}/val",
    }
    print(f"{case.name}: pre-training on {first.data}", flush=True)
    train_and_test(sweep_of(case, {name: changes}), out, name, 0, cpu=not gpu)
    return run_directory(out, name, 0) / "checkpoints" / RUN_ID / "best_checkpoint.pt"


def overrides(case: Case, arm: str, gpu: bool) -> dict[str, Any]:
    """The settings of an arm, including the checkpoint that it starts from."""
    first = case.pretraining(arm)
    checkpoint = pretrain(case, first, gpu).relative_to(ROOT) if first else None
    return case.overrides(arm, checkpoint and str(checkpoint))


def evaluate(case: Case, arm: str, seed: int, what: Evaluation, gpu: bool) -> dict[str, float]:
    """Metrics of a trained model in an evaluation, which is done unless it exists."""
    where = run_directory(_out(case), arm, seed)
    written = where / what.name / "metrics.json"
    if not written.exists():
        best = where / "checkpoints" / RUN_ID / "best_checkpoint.pt"
        device = () if gpu else ("--cpu",)
        _ndem(what.command, best, *what.words, *device, "--out", written.parent)
    metrics = json.loads(written.read_text(encoding="utf-8"))["splits"]["test"]["metrics"]
    return {key: metrics[key] for key in what.keys}


def results_path(case: Case) -> Path:
    return ROOT / f"results/second_views_{case.name}.json"


def check_results(case: Case, arms: list[str]) -> None:
    """Check before the training that runs of these arms can be added to the results."""
    sweep = sweep_of(case, {arm: case.overrides(arm) for arm in arms})
    ready = [arm for arm in arms if case.pretraining(arm) is None]
    new = {
        **provenance(ROOT),
        "data": {part: hash_of_data(f"{case.data}/{part}") for part in ("train", "val", "test")},
        "config_hash": {arm: hash_of_arm(sweep, arm, []) for arm in ready},
    }
    try:
        results_file.check(results_path(case), new)
    except results_file.OtherRuns as error:
        sys.exit(f"second_views: {error}")


def run(case: Case, arm: str, seed: int, gpu: bool = False) -> None:
    """Train and test one run, unless done."""
    sweep = sweep_of(case, {arm: overrides(case, arm, gpu)})
    print(f"{case.name}: {arm}, seed {seed}", flush=True)
    train_and_test(sweep, _out(case), arm, seed, cpu=not gpu)
    for what in case.evaluations:
        evaluate(case, arm, seed, what, gpu)


def write_results(case: Case, calculator: str, gpu: bool = False) -> None:
    """Add all runs of the case that are done here to its results."""
    out = _out(case)
    done = {
        arm: [seed for seed in SEEDS if (run_directory(out, arm, seed) / DONE).exists()]
        for arm in case.arms
    }
    done = {arm: seeds for arm, seeds in done.items() if seeds}
    found: dict[str, Any] = {}
    for arm, seeds in done.items():
        part = collect(sweep_of(case, {arm: overrides(case, arm, gpu)}), out, [arm], seeds, [])
        evaluations = {
            what.name: [evaluate(case, arm, seed, what, gpu) for seed in seeds]
            for what in case.evaluations
        }
        part["arms"][arm] = results_file.with_evaluations(part["arms"][arm], evaluations)
        for key in ("arms", "config_hash"):
            part[key] = {**found.get(key, {}), **part[key]}
        found = part
    used = {case.all_arms[arm].views for arm in done if case.all_arms[arm].has_views}
    found["second_views"] = _provenance(case, "views")
    found["other_views"] = {which: _provenance(case, which) for which in sorted(used - {"views"})}
    if isinstance(case, Molecule):
        found["potential"] = {
            which: potential_itself(case, which, calculator) for which in sorted(used)
        }
    if case.evaluated:
        found["zero_force_mae"] = {
            name: dataset_statistics(path).zero_force_mae for name, path in case.evaluated.items()
        }
    found["cost_per_step"] = {arm: case.all_arms[arm].cost for arm in done}
    results_file.add(results_path(case), found)


def potential_itself(case: Case, which: str, calculator: str) -> dict[str, float]:
    """Force MAE of s T + V itself on frames of the test set, in the data's unit.

    Args:
        which: the views made with it. calculator: T of the case.
    """
    written = _out(case) / f"potential_{which}.json"
    if written.exists():
        return json.loads(written.read_text(encoding="utf-8"))
    views = Path(case.views_file(which))
    potential = labeller(views, VIEW_FILES[which][0] or calculator)
    scale = read_meta(views)["scale"]
    structures = list(iter_structures(f"{case.data}/test"))
    chosen = structures[:: max(1, len(structures) // TEST_FRAMES)][:TEST_FRAMES]
    unit = force_in_ev(units_of(Path(case.data) / "test"))
    errors = [
        np.abs(scale * potential(structure)[1] / unit - structure.forces)[structure.free]
        for structure in chosen
    ]
    found = {"frames": len(chosen), "forces_mae": float(np.concatenate(errors).mean())}
    written.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _provenance(case: Case, which: str) -> dict[str, Any]:
    """How second views of a case were made; ``which``: a key of ``VIEW_FILES``."""
    views = Sidecar(case.views_file(which))
    keys = ("made_of", "scale", "relative_error", "structures", "counts")
    return {**{key: views.meta[key] for key in keys}, "correction": views.correction}


if __name__ == "__main__":
    sys.exit(in_checkout(main))
