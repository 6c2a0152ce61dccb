"""``ndem fit``: from a file of frames to an evaluated model that you can use in ASE.

    ndem fit frames.extxyz
    ndem fit relaxations/*.traj --time 30 --out mine
    ndem fit train.extxyz --valid valid.extxyz --test test.extxyz
    ndem fit frames.extxyz --energy-key REF_energy --forces-key REF_forces --units kcal/mol

It converts and splits the files, chooses a model for the data and the machine, trains it for --time
minutes, evaluates it, and prints every choice with its reason. If it was stopped, the same command
continues. --dry-run prints the plan and the configuration, and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairchem_kit.commands.options import add_device, add_labels, add_seed, describe
from fairchem_kit.data.sources.ase import expand_sources
from fairchem_kit.files import existing
from fairchem_kit.hosts import require_host
from fairchem_kit.launch.device import choose_cpu
from fairchem_kit.words import counted
from ndem_ocp.fit.errors import FitError
from ndem_ocp.fit.views import is_potential, make_views, views_file

if TYPE_CHECKING:
    from ndem_ocp.fit.dataset import FitData
    from ndem_ocp.fit.folder import Folder
    from ndem_ocp.fit.inputs import Inputs
    from ndem_ocp.fit.length import Length
    from ndem_ocp.fit.plan import Plan

MINUTES = 5.0
LONGEST = 366 * 24 * 60.0  # minutes


def configure(parser: argparse.ArgumentParser) -> None:
    """``ndem fit``."""
    describe(parser, __doc__)
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help=".extxyz, .traj, .db, also .gz, .xz; folders")
    add("--valid", nargs="+", metavar="FILE", help="frames for validation; default: 10 %% of FILE")
    add("--test", nargs="+", metavar="FILE", help="frames for the test; default: 10 %% of FILE")
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for the result; default: named after the first FILE",
    )
    add_labels(parser)
    add("--skip-bad", action="store_true", help="leave out unusable frames and list them")
    add(
        "--time", type=float, default=MINUTES, metavar="MINUTES",
        help="training time (default: %(default)g), without conversion and evaluation",
    )  # fmt: skip
    add_seed(parser, "the split and the weights")
    add("--model", choices=("et", "equiformer_v2"), help="default: chosen by the data")
    add(
        "--second-views", metavar="POTENTIAL",
        help="also train on displaced structures. Their labels come from an ASE calculator, as "
        "MODULE:CALL; from an energy fitted to the frames themselves: data; or from a file made by "
        "ndem data second-views",
    )  # fmt: skip
    add_device(parser)
    add(
        "--dry-run", action="store_true", help="print the plan and the configuration; write nothing"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run all steps; exit status 75 after a Ctrl-C that saved, see ``launch.exit_codes``."""
    require_host(1, "ndem fit")
    _check(args)

    from fairchem_kit.data.lock import only_writer
    from ndem_ocp.fit.folder import Folder
    from ndem_ocp.fit.inputs import default_folder, read_inputs

    labels = {"energy_key": args.energy_key, "forces_key": args.forces_key, "unit": args.units}
    inputs = read_inputs(args.files, args.valid, args.test, **labels)
    cpu = choose_cpu(args.cpu, args.gpu)
    folder = Folder(args.out or default_folder(args.files))
    if args.dry_run:
        return _dry_run(args, inputs, folder, cpu)
    if folder.open(_made_of(args, inputs)):
        print(f"{folder.shown(folder.path)} exists: continuing with it.")
    if not folder.config.exists():
        try:
            with only_writer(folder.config):  # two starts at the same time would write two
                if not folder.config.exists():
                    _prepare(args, inputs, folder, cpu)
        except BaseException:
            folder.forget()
            raise
    code = 0 if folder.is_trained() else _train(args, folder, cpu)
    if code:
        _say_how_to_continue(args, code)
        return code
    from ndem_ocp.fit.result import evaluate_and_report

    evaluate_and_report(folder, cpu)
    return 0


def _check(args: argparse.Namespace) -> None:
    if not 0 < args.time <= LONGEST:
        raise FitError(f"--time {args.time:g}: give a number of minutes above 0, up to a year.")
    if args.second_views is not None and not is_potential(args.second_views):
        existing(args.second_views, FitError, "--second-views")
    for given in filter(None, (args.files, args.valid, args.test)):
        expand_sources(given)  # before ASE is imported: they may be missing


def _made_of(args: argparse.Namespace, inputs: Inputs) -> dict[str, Any]:
    """The arguments that decide the result; with other values it is a different fit."""
    views = args.second_views
    if views is not None and not is_potential(views):
        views = str(Path(views).resolve())
    return {
        "files": inputs.fingerprint(),
        "energy_key": args.energy_key,
        "forces_key": args.forces_key,
        "unit": args.units,
        "skip_bad": args.skip_bad,
        "minutes": args.time,
        "seed": args.seed,
        "model": args.model,
        "second_views": views,
    }


def _dry_run(args: argparse.Namespace, inputs: Inputs, folder: Folder, cpu: bool) -> int:
    """Print the plan, made in a temporary folder."""
    from ndem_ocp.fit.dataset import load, make
    from ndem_ocp.fit.plan import cutoff_of

    cutoff = cutoff_of(inputs.pbc, args.model, cpu)
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "data"
        make(inputs, data, args.seed, args.skip_bad, cutoff, _workers())
        plan, length, _ = _plan(args, load(data, _workers()), folder, cpu)
        text = _text(args, plan, length, folder)
    print(f"\n{text}", end="")
    print(
        f"\nNothing was written. Without --dry-run the result goes to {folder.shown(folder.path)}."
    )
    return 0


def _prepare(args: argparse.Namespace, inputs: Inputs, folder: Folder, cpu: bool) -> None:
    """Data and configuration."""
    from fairchem_kit.data.report import print_losses
    from ndem_ocp.fit.dataset import load, make
    from ndem_ocp.fit.plan import cutoff_of

    if not folder.has_data():
        cutoff = cutoff_of(inputs.pbc, args.model, cpu)
        make(inputs, folder.data, args.seed, args.skip_bad, cutoff, _workers())
    data = load(folder.data, _workers())
    print_losses(data.entry)
    if is_potential(args.second_views):
        make_views(args.second_views, data, folder, args.time)
    plan, length, threads = _plan(args, data, folder, cpu)
    folder.note("threads", threads)  # for a continued run: with others, sums are rounded otherwise
    folder.note("elements", data.train.elements)
    folder.note("print_every", length.eval_every)
    folder.write_config(_text(args, plan, length, folder))
    print(f"{'config':<10}{folder.shown(folder.config)}, to edit and train again")


def _plan(
    args: argparse.Namespace, data: FitData, folder: Folder, cpu: bool
) -> tuple[Plan, Length, int | None]:
    """Choose the model, measure its speed, choose the length and threads, and print all of it."""
    import torch

    from fairchem_kit.launch.console import short_messages
    from ndem_ocp.fit.config import config_text, parse
    from ndem_ocp.fit.length import Speed, choose_length, measure
    from ndem_ocp.fit.plan import make_plan

    views = views_file(args.second_views, folder)
    plan = make_plan(data, args.model, cpu, views)
    print(data.described())
    for name, reason in plan.reasons.items():
        print(f"{name:<10}{reason}")
    frames = data.train.frames, data.splits["val"].frames
    guess = choose_length(Speed(1.0, 0.1), args.time, *frames, plan.batch_size)
    guess = replace(guess, train_frames=None, val_frames=None)
    trial = parse(config_text(plan, guess, folder.path, data.path, ""))
    with short_messages():
        speed = measure(trial, cpu, args.time)
    if speed.slower:
        print(
            f"{'threads':<10}{speed.threads}: a step takes {speed.step_s:.3g} s, and "
            f"{speed.slower:.3g} s with {torch.get_num_threads()} (measured)"
        )
    length = choose_length(speed, args.time, *frames, plan.batch_size)
    print(f"{'length':<10}{length.reason}")
    print(
        f"{'stopping':<10}early, after {counted(length.patience, 'validation')} in a row (one "
        f"every {counted(length.eval_every, 'step')}) without a better force error"
    )
    return plan, length, speed.threads


def _text(args: argparse.Namespace, plan: Plan, length: Length, folder: Folder) -> str:
    from ndem_ocp.fit.config import config_text

    title = f"ndem fit {shlex.join(args.files)}: {plan.reasons['model']}"
    return config_text(plan, length, folder.path, folder.data, title)


def _train(args: argparse.Namespace, folder: Folder, cpu: bool) -> int:
    import torch

    from fairchem_kit.launch.command import TrainCommand
    from fairchem_kit.launch.places import alone
    from fairchem_kit.launch.rank import run_rank
    from ndem_ocp.fit.folder import RUN_ID

    threads = folder.read("threads")
    if threads is not None:
        torch.set_num_threads(threads)
    every = folder.read("print_every") or 100
    options = ["--seed", str(args.seed), "--print-every", str(every)]
    options.append(f"--identifier={folder.path.name}")  # which may begin with a hyphen
    command = TrainCommand(folder.config, folder.path, RUN_ID, cpu, options=options)
    return run_rank(command, alone())


def _say_how_to_continue(args: argparse.Namespace, code: int) -> None:
    from fairchem_kit.launch import exit_codes

    if code in (exit_codes.STOPPED, exit_codes.INTERRUPTED):
        line = shlex.join(["ndem", *args.given])
        print(f"Stopped. The same command continues:\n  {line}", file=sys.stderr)


def _workers() -> int:
    return min(4, os.cpu_count() or 1)
