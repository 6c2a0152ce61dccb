"""``ndem train``: train in one process, in several on this machine, or as a rank of an srun step.

Exit codes: 0 finished; 1 an error in the run; 2 the command line, configuration, data or disk does
not allow training; 75 stopped after a step and saved, the same command continues; 76 another rank
died; 130 a second Ctrl-C; 128 + n a rank was killed by signal n.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from fairchem_kit.commands.options import add_cpu, add_ranks, add_unsafe, describe
from fairchem_kit.config_names import existing_config
from fairchem_kit.files import existing_file
from fairchem_kit.launch import exit_codes
from fairchem_kit.launch.command import TrainCommand, default_id, split_words
from fairchem_kit.launch.errors import LaunchError
from fairchem_kit.launch.places import LOCAL, Place, alone, place_of, slurm_job
from fairchem_kit.launch.record import Record, safe_id
from fairchem_kit.launch.signals import stop_with_parent
from fairchem_kit.launch.sweep_file import read_sweep
from fairchem_kit.launch.tasks import tasks_of
from fairchem_kit.words import counted


def configure(parser: argparse.ArgumentParser) -> None:
    """``ndem train``."""
    describe(parser, __doc__)
    parser.allow_abbrev = False
    parser.usage = "ndem train CONFIG [options] [fairchem options] [key=value ...]"
    add_arguments(parser)
    parser.epilog = (
        "fairchem's options (--seed, --amp, --identifier, --print-every, --checkpoint, --debug) "
        "and key=value overrides of the configuration follow in any order."
    )
    parser.set_defaults(func=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that identify the run."""
    add_ranks(parser)
    parser.add_argument(
        "--run-dir",
        type=Path,
        default=Path(),
        help="folder of the run; default: the current directory",
    )
    parser.add_argument("--id", help="name of the run; give the same name again to continue it")
    parser.add_argument("--group", help="W&B group")
    add_cpu(parser, "train on the CPU; default: a GPU if one is visible")
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="print fairchem's own lines: every metric and its set-up",
    )
    add_unsafe(parser)
    parser.add_argument("--sweep", type=Path, help="a sweep file, instead of CONFIG")
    parser.add_argument(
        "--task", type=int, help="number of the task in it, an arm and seed (from 0)"
    )
    parser.set_defaults(overrides=[], unknown=[])


def run(args: argparse.Namespace) -> int:
    """Train; returns the exit code."""
    command = command_of(args)
    place = place_of()
    if place is None or (place.world_size == 1 and args.ranks > 1):
        return _run_here(command, args.ranks)
    if args.ranks not in (1, place.world_size):
        raise LaunchError(
            f"--ranks {args.ranks} inside an srun step of {counted(place.world_size, 'task')}: "
            "leave it out, srun has started the ranks."
        )
    if LOCAL in os.environ:
        stop_with_parent()
    run_and_leave(command, place)
    return exit_codes.FINISHED


def run_and_leave(command: TrainCommand, place: Place) -> None:
    """Train as one rank, and end this process."""
    from fairchem_kit.launch.rank import leave, run_rank

    leave(run_rank(command, place), place)


def _run_here(command: TrainCommand, ranks: int) -> int:
    if ranks < 1:
        raise LaunchError("--ranks must be at least 1.")
    if ranks == 1:
        from fairchem_kit.launch.rank import run_rank

        code = run_rank(command, alone())
    else:
        from fairchem_kit.launch.local import run_local

        code = run_local(command, ranks)
    if code in (exit_codes.STOPPED, exit_codes.LOST_RANK) or code > 128:
        _say_how_to_continue(command, ranks, code)
    return code


def _say_how_to_continue(command: TrainCommand, ranks: int, code: int) -> None:
    step = Record(command.run_dir, command.run_id).read().get("step")
    how = {
        exit_codes.STOPPED: f"Stopped; everything up to step {step} is saved.",
        exit_codes.INTERRUPTED: "Ended at once, without saving.",
    }.get(code, "A rank died.")
    print(
        f"{how} To continue from the newest checkpoint:\n  {command.line(ranks)}", file=sys.stderr
    )


def command_of(args: argparse.Namespace) -> TrainCommand:
    """The command for ``args``.

    Raises:
        LaunchError: naming arguments that contradict each other.
    """
    words = [*args.unknown, *args.overrides, *(["--task.unsafe=True"] if args.unsafe else [])]
    # checked before fairchem is imported, which takes seconds
    if args.sweep is not None:
        existing_file(args.sweep, LaunchError)
    elif words and not words[0].startswith("-") and "=" not in words[0]:
        existing_config(words[0], LaunchError)
    config, options, overrides = split_words(words)
    if args.sweep is not None:
        if config is not None:
            raise LaunchError(f"{args.sweep} names its own configuration: leave out {config}.")
        return _command_of_sweep(args, options, overrides)
    if args.task is not None:
        raise LaunchError("--task is the number of a task of --sweep FILE: give --sweep too.")
    if config is None:
        raise LaunchError("no configuration: use ndem train CONFIG, or --sweep FILE --task N.")
    run_id = (
        safe_id(args.id) if args.id else default_id(_value(options, "--identifier"), slurm_job())
    )
    return TrainCommand(
        config, args.run_dir, run_id, args.cpu, args.group, options, overrides, args.verbose
    )


def _command_of_sweep(
    args: argparse.Namespace, options: list[str], overrides: list[str]
) -> TrainCommand:
    sweep = read_sweep(args.sweep)
    tasks = tasks_of(sweep, args.run_dir, sweep.seeds)
    if args.task is None or not 0 <= args.task < len(tasks):
        names = ", ".join(f"{task.index} {task.name}" for task in tasks)
        raise LaunchError(f"{args.sweep}: give the task, --task N with N from: {names}.")
    task = tasks[args.task]
    return TrainCommand(
        config=sweep.config,
        run_dir=task.run_dir,
        run_id=safe_id(args.id) if args.id else default_id(task.name, slurm_job()),
        cpu=args.cpu,
        group=args.group or args.sweep.stem,
        options=[*task.options, *options],
        overrides=[*task.overrides, *overrides],
        verbose=args.verbose,
    )


def _value(words: list[str], option: str) -> str:
    """The value of an option among ``words`` (two words, or one with =), or nothing."""
    for i, word in enumerate(words):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option and i + 1 < len(words):
            return words[i + 1]
    return ""
