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
import contextlib
import io
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairchem_kit.commands.options import add_device, add_labels, add_seed, describe
from fairchem_kit.data.sources.ase import expand_sources
from fairchem_kit.files import existing
from fairchem_kit.launch.device import choose_cpu
from ndem_ocp.fit.errors import FitError
from ndem_ocp.fit.views import is_potential, make_views, views_file

if TYPE_CHECKING:
    from ndem_ocp.fit.dataset import FitData
    from ndem_ocp.fit.folder import Folder
    from ndem_ocp.fit.inputs import Inputs
    from ndem_ocp.fit.length import Length
    from ndem_ocp.fit.plan import Plan

MINUTES = 5.0


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
        help="also train on displaced structures labelled with a potential: an ASE calculator as "
        "MODULE:CALL, or a file made by ndem data second-views",
    )  # fmt: skip
    add_device(parser)
    add(
        "--dry-run", action="store_true", help="print the plan and the configuration; write nothing"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run all steps; exit status 75 after a Ctrl-C that saved, see ``launch.exit_codes``."""
    _check(args)

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
            _prepare(args, inputs, folder, cpu)
        except BaseException:
            folder.forget()
            raise
    code = 0 if folder.is_trained() else _train(args, folder, cpu)
    if code:
        _say_how_to_go_on(args, code)
        return code
    _evaluate_and_report(folder, cpu)
    return 0


def _check(args: argparse.Namespace) -> None:
    if not args.time > 0:
        raise FitError(f"--time {args.time:g}: give a number of minutes above 0.")
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

    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "data"
        make(inputs, data, args.seed, args.skip_bad, _workers(), bars=_bars())
        plan, length = _plan(args, load(data, _workers(), _bars()), folder, cpu)
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

    if not folder.has_data():
        make(inputs, folder.data, args.seed, args.skip_bad, _workers(), bars=_bars())
    data = load(folder.data, _workers(), _bars())
    print_losses(data.entry)
    if is_potential(args.second_views):
        make_views(args.second_views, data, folder, args.time, _bars())
    plan, length = _plan(args, data, folder, cpu)
    folder.note("elements", data.train.elements)
    folder.note("print_every", length.print_every)
    folder.write_config(_text(args, plan, length, folder))
    print(f"{'config':<10}{folder.shown(folder.config)}, to edit and train again")


def _plan(
    args: argparse.Namespace, data: FitData, folder: Folder, cpu: bool
) -> tuple[Plan, Length]:
    """Choose the model, measure its speed, choose the length, and print all of it."""
    from fairchem_kit.launch.console import short_messages
    from ndem_ocp.fit.config import config_text, parse
    from ndem_ocp.fit.length import Speed, choose_length, measure
    from ndem_ocp.fit.plan import make_plan

    views = views_file(args.second_views, folder)
    plan = make_plan(data, args.model, cpu, views)
    print(_described(data))
    for name, reason in plan.reasons.items():
        print(f"{name:<10}{reason}")
    frames = data.train.frames, data.splits["val"].frames
    guess = choose_length(Speed(1.0, 0.1), args.time, *frames, plan.batch_size)
    trial = parse(config_text(plan, guess, folder.path, data.path, ""))
    for split, section in trial["dataset"].items():
        section.pop(f"{split}_split_settings", None)
    with short_messages():
        speed = measure(trial, cpu, args.time)
    length = choose_length(speed, args.time, *frames, plan.batch_size)
    print(f"{'length':<10}{length.reason}")
    print(
        f"{'stopping':<10}early, after {length.patience} validations in a row (one every "
        f"{length.eval_every} steps) without a better force error"
    )
    return plan, length


def _described(data: FitData) -> str:
    from ase.data import chemical_symbols

    s = data.train
    frames = sum(split.frames for split in data.splits.values())
    named = [name for name in ("train", "val", "test") if name in data.splits]
    counts = ", ".join(f"{data.splits[name].frames} {name}" for name in named)
    atoms = f"{s.atoms_min}" if s.atoms_min == s.atoms_max else f"{s.atoms_min}-{s.atoms_max}"
    return (
        f"{'data':<10}{frames} frames ({counts}) of "
        f"{' '.join(chemical_symbols[z] for z in s.elements)}, {atoms} atoms, "
        f"{'periodic ' + data.pbc if data.periodic else 'no cell'}; forces rms "
        f"{s.force_rms:.4g} eV/A, energies vary by {s.energy_stdev:.4g} eV"
    )


def _text(args: argparse.Namespace, plan: Plan, length: Length, folder: Folder) -> str:
    from ndem_ocp.fit.config import config_text

    title = f"ndem fit {shlex.join(args.files)}: {plan.reasons['model']}"
    return config_text(plan, length, folder.path, folder.data, title)


def _train(args: argparse.Namespace, folder: Folder, cpu: bool) -> int:
    from fairchem_kit.launch.command import TrainCommand
    from fairchem_kit.launch.places import alone
    from fairchem_kit.launch.rank import run_rank
    from ndem_ocp.fit.folder import RUN_ID

    every = folder.read("print_every") or 100
    options = ["--seed", str(args.seed), "--print-every", str(every)]
    options += ["--identifier", folder.path.name]
    command = TrainCommand(folder.config, folder.path, RUN_ID, cpu, options=options)
    return run_rank(command, alone())


def _say_how_to_go_on(args: argparse.Namespace, code: int) -> None:
    from fairchem_kit.launch import exit_codes

    if code in (exit_codes.STOPPED, exit_codes.INTERRUPTED):
        line = shlex.join(["ndem", *args.given])
        print(f"Stopped. The same command continues:\n  {line}", file=sys.stderr)


def _evaluate_and_report(folder: Folder, cpu: bool) -> None:
    """Evaluate, write model.pt and the report, and print how to use the model."""
    from fairchem_kit.evaluation.evaluation import file_hash
    from ndem_ocp.fit.config import parse
    from ndem_ocp.fit.dataset import subtracted
    from ndem_ocp.fit.result import advice, errors_of, table, useful, verdict, write_model

    if not folder.best.is_file():
        raise FitError(
            f"{folder.best} is missing, because training ended before the first validation. Lower "
            f"optim.eval_every in {folder.config} and train with ndem train."
        )
    coefficients = subtracted(folder.data)
    best = file_hash(folder.best)
    done = folder.read("evaluated") == best and folder.model.exists() and folder.report.exists()
    if not done:
        _evaluate(folder, cpu)
        write_model(folder.best, folder.model, folder.read("elements"), coefficients)
    config = parse(folder.config.read_text(encoding="utf-8"))
    mean = config["dataset"]["train"]["transforms"]["normalizer"]["energy"]["mean"]
    errors = [errors_of(folder.eval, name, mean) for name in folder.splits()]
    print(f"\n{table(errors)}\n\n{verdict(errors[-1])}")
    if useful(errors[-1]):
        views = config["task"]["ndem"].get("second_views") is not None
        print(advice(*folder.steps(), views))
    print()
    if not done:
        _report(folder)
        folder.note("evaluated", best)
    files = ", ".join(folder.shown(path) for path in (folder.model, folder.config, folder.report))
    energies = "relative to each system's last frame" if coefficients is None else "total"
    print(
        f"wrote {files}\n\nIn ASE, with forces in eV/A and {energies} energies in eV:\n\n"
        "    import ndem_ocp\n"
        f'    atoms.calc = ndem_ocp.calculator("{folder.shown(folder.model)}")'
    )


def _evaluate(folder: Folder, cpu: bool) -> None:
    """``ndem eval``; its table is printed later, next to the errors of the simplest guesses."""
    splits = [str(folder.data / name) for name in folder.splits()]
    words = ["eval", str(folder.best), "--data", *splits, "--out", str(folder.eval)]
    _quietly([*words, "--workers", "0", *(["--cpu"] if cpu else [])])


def _report(folder: Folder) -> None:
    """``ndem report``."""
    words = ["report", str(folder.path), "--out", str(folder.report), "--eval", str(folder.eval)]
    _quietly([*words, f"--title={folder.path.name}"])


def _quietly(words: list[str]) -> None:
    """Run another command of ndem in this process, without its output.

    Its own parser is used, so that options added to it later work here too.
    """
    from fairchem_kit.launch.console import short_messages
    from ndem_ocp.commands.parser import build_parser

    args = build_parser(words).parse_args(words)
    args.given = words
    with short_messages(), contextlib.redirect_stdout(io.StringIO()):
        args.func(args)


def _workers() -> int:
    return min(4, os.cpu_count() or 1)


def _bars() -> bool:
    return sys.stderr.isatty()
