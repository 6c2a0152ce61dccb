"""``ndem sweep``: several runs of one configuration, their errors on a test set, a table.

A sweep is a file:

    config: ../aspirin.yml                 # relative to this file
    seeds: [0, 1, 2]
    test: data/md17/aspirin/test           # evaluated with each run's best checkpoint
    grid:                                  # every combination is an arm, or
      task.ndem.coefficient: [0, 0.1, 1]
    arms:                                  # named arms
      plain: {task.ndem.coefficient: 0}
    overrides: {optim.max_epochs: 10}      # for all arms
    metrics: [forces_mae_kcal_per_mol_A]   # columns of the table, the primary metric first

Every run is a stock ``fairchem --mode train``. If you start the command again, completed runs are
skipped and interrupted ones continue from their last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from fairchem_kit.commands.options import add_device, describe, seed_of
from fairchem_kit.files import writable_folder, write_text
from fairchem_kit.history.file import FILE_NAME, read_history
from fairchem_kit.launch.device import choose_cpu
from fairchem_kit.launch.environment import without_group
from fairchem_kit.launch.record import finished_id
from fairchem_kit.launch.sweep_file import (
    DONE,
    LOGS,
    RUN_ID,
    Sweep,
    SweepError,
    read_sweep,
    run_directory,
    runs_of,
)
from fairchem_kit.progress import bar


def configure(parser: argparse.ArgumentParser) -> None:
    """``ndem sweep``."""
    describe(parser, __doc__)
    parser.add_argument("file", type=Path, help="such as configs/md17/sweeps/table4.yml")
    parser.add_argument("--out", type=Path, help="default: runs/<name of the file>")
    parser.add_argument("--seeds", type=seed_of, nargs="+", help="instead of the file's")
    parser.add_argument("--arms", nargs="+", help="only these")
    parser.add_argument("--test", help="test split instead of the file's")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    add_device(parser)
    parser.add_argument("--result", type=Path, help="also write the table's JSON there")
    parser.epilog = "After --, key=value overrides for all runs."
    parser.set_defaults(func=run, overrides=[])


def run(args: argparse.Namespace) -> int:
    """Train the missing runs, evaluate them, write sweep.json, table.md and curves.png."""
    sweep = read_sweep(args.file)
    if args.test:
        sweep = replace(sweep, test=args.test)
    seeds = args.seeds or sweep.seeds
    unknown = [name for name in args.arms or [] if name not in sweep.arms]
    if unknown:
        raise SweepError(f"{args.file} has no arm {unknown[0]!r}: {', '.join(sweep.arms)}.")
    arms = {name: sweep.arms[name] for name in args.arms or sweep.arms}
    args.cpu = choose_cpu(args.cpu, args.gpu)

    from fairchem_kit.report.plots import plot_arms
    from fairchem_kit.report.sweep_results import collect, markdown

    out = (args.out or Path("runs") / args.file.stem).resolve()
    work = runs_of(args.file, out, arms, seeds)
    writable_folder(out)
    if args.result is not None:
        writable_folder(args.result.resolve().parent)
    with ThreadPoolExecutor(args.jobs) as pool:
        running = [
            pool.submit(train_and_test, sweep, out, *item, args.cpu, args.overrides)
            for item in work
        ]
        try:
            for future in bar(as_completed(running), total=len(running), desc="sweep", unit="run"):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    result = collect(sweep, out, list(arms), seeds, args.overrides)
    for path in filter(None, (out / "sweep.json", args.result)):
        write_text(path, json.dumps(result, indent=1) + "\n")
    table = markdown(result)
    write_text(out / "table.md", table)
    print(
        f"\n{table}\nwrote {out}/sweep.json, table.md, {plot_arms(result, out / 'curves.png').name}"
    )
    return 0


def train_and_test(
    sweep: Sweep, out: Path, arm: str, seed: int, cpu: bool = True, overrides: Sequence[str] = ()
) -> None:
    """One run and its test, unless both exist already."""
    where = run_directory(out, arm, seed)
    made_of = {"changes": sweep.arms[arm], "all": list(overrides), "test": sweep.test}
    if (where / DONE).exists():
        if json.loads((where / DONE).read_text())["made_of"] != made_of:
            raise SweepError(
                f"{where} was made with other settings or has another test set: use "
                "another --out, or remove it."
            )
        return
    where.mkdir(parents=True, exist_ok=True)
    changes = [f"--{key}={value}" for key, value in sweep.arms[arm].items()]
    changes += [f"--{given.lstrip('-')}" for given in overrides]
    common = [
        "--config-yml", str(sweep.config), "--run-dir", str(where), "--identifier", arm,
        "--seed", str(seed), *(["--cpu"] if cpu else []), *changes,
    ]  # fmt: skip
    run_id = finished_id(where) or RUN_ID  # `ndem submit` may have trained it already
    if run_id == RUN_ID:
        _fairchem(["--mode", "train", "--timestamp-id", run_id, *common], where / "train.log")
    best = where / "checkpoints" / run_id / "best_checkpoint.pt"
    if not best.exists():
        raise SweepError(
            f"{where} has no best checkpoint: its run was shorter than optim.eval_every "
            "steps. Lower optim.eval_every and start again with another --out."
        )
    test = ["--timestamp-id", "test", "--checkpoint", str(best), f"--dataset.val.src={sweep.test}"]
    history = where / LOGS / "test" / FILE_NAME
    history.unlink(missing_ok=True)  # of a test that was interrupted
    _fairchem(["--mode", "validate", *common, *test], where / "test.log")
    last = {k: v for k, v in read_history(history, "val")[-1].items() if k not in ("split", "step")}
    done = {"arm": arm, "seed": seed, "run_id": run_id, "made_of": made_of, "test": last}
    write_text(where / DONE, json.dumps(done, indent=1) + "\n")


def _fairchem(options: list[str], log: Path) -> None:
    command = [str(Path(sys.executable).parent / "fairchem"), *options]
    environment = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", **without_group(os.environ)}
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run(command, stdout=file, stderr=file, env=environment, check=False)
    if done.returncode:
        lines = log.read_text(encoding="utf-8").splitlines()[-12:]
        raise SweepError(f"a run failed; the end of {log}:\n" + "\n".join(lines))
