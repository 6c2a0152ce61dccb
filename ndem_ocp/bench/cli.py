"""``ndem bench``: measure time and memory on this machine.

The code of a command is imported when it runs, to keep `ndem --help` fast.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fairchem_kit.commands.ending import INTERRUPTED
from fairchem_kit.commands.options import add_unsafe
from fairchem_kit.files import existing, writable_folder
from ndem_ocp.bench.arguments import add_common, add_machine
from ndem_ocp.bench.configs import config_path
from ndem_ocp.bench.errors import BenchError
from ndem_ocp.bench.names import AXES, HOST_ARMS, SCALING_ARMS, STEP_ARMS

# (measured rounds, warm-up rounds) without --repeats and --warmup
ROUNDS = {"cpu": (9, 1), "cuda": (30, 5)}


def configure_step(parser: argparse.ArgumentParser) -> None:
    """``ndem bench step``."""
    add_common(parser)
    _add_batch_sizes(parser, ["8"])
    parser.add_argument(
        "--arms", nargs="+", default=list(STEP_ARMS), metavar="ARM",
        help=f"arms from {', '.join(HOST_ARMS)}, and the objectives by their names in "
        f"task.ndem.objective (default: {' '.join(STEP_ARMS)})",
    )  # fmt: skip
    parser.add_argument(
        "--fractions", nargs="+", type=float, default=[], metavar="F",
        help="also measure NDeM with a second view of this fraction of each batch "
             "(task.ndem.fraction)",
    )  # fmt: skip
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.set_defaults(func=run_step)


def configure_inference(parser: argparse.ArgumentParser) -> None:
    """``ndem bench inference``."""
    add_common(parser)
    _add_batch_sizes(parser, ["1", "8"])
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="measure the model and weights of this checkpoint instead of --model",
    )
    add_unsafe(parser)
    parser.set_defaults(func=run_inference)


def configure_data(parser: argparse.ArgumentParser) -> None:
    """``ndem bench data``."""
    add_machine(parser)
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument(
        "--batch-size", type=int, default=8, help="structures per batch (default: 8)"
    )
    parser.add_argument("--batches", type=int, default=150, help="batches per pass (default: 150)")
    parser.add_argument("--repeats", type=int, default=5, help="number of passes (default: 5)")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument(
        "--atoms-per-second", type=float, metavar="X", help="speed of the model that needs the data"
    )
    speed.add_argument(
        "--step",
        type=Path,
        metavar="FILE",
        help="take the speed from a JSON file of ndem bench step",
    )
    parser.set_defaults(func=run_data)


def configure_scaling(parser: argparse.ArgumentParser) -> None:
    """``ndem bench scaling``."""
    add_common(parser)
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=AXES)
    parser.add_argument("--arms", nargs="+", default=list(SCALING_ARMS), metavar="ARM")
    parser.add_argument(
        "--batch-size", type=int, default=2, help="structures per batch on the other axes"
    )
    _add_rounds(parser)
    parser.set_defaults(func=run_scaling)


def _add_batch_sizes(parser: argparse.ArgumentParser, default: list[str]) -> None:
    parser.add_argument(
        "--batch-sizes", nargs="+", default=default, metavar="N",
        help=f"structures per batch, or max (CUDA): 1, 2, 4, ... (default: {' '.join(default)})",
    )  # fmt: skip
    _add_rounds(parser)


def _add_rounds(parser: argparse.ArgumentParser) -> None:
    usual = "; ".join(f"{device} {pair[0]} and {pair[1]}" for device, pair in ROUNDS.items())
    parser.add_argument("--repeats", type=int, help="measured rounds")
    parser.add_argument(
        "--warmup", type=int, help=f"warm-up rounds before them (defaults: {usual})"
    )


def _look_at_paths(args: argparse.Namespace) -> None:
    """Refuse missing files before torch is imported."""
    if getattr(args, "model", None) is not None:
        config_path(args.model)
    for option in ("data", "checkpoint", "step"):
        if getattr(args, option, None) is not None:
            existing(getattr(args, option), BenchError, f"--{option}")
    if args.out is not None:
        writable_folder(args.out.resolve().parent)
    for option, least in (("repeats", 1), ("warmup", 0)):
        value = getattr(args, option, None)
        if value is not None and value < least:
            raise BenchError(f"--{option} must be at least {least}, not {value}.")


def _rounds(args: argparse.Namespace, device: Any) -> tuple[int, int]:
    repeats, warmup = ROUNDS[device.type]
    repeats = repeats if args.repeats is None else args.repeats
    return repeats, warmup if args.warmup is None else args.warmup


def run_step(args: argparse.Namespace) -> int:
    """Measure, print a table per batch size, write JSON; the last line has the ratios."""
    arms = arms_of(args.arms, args.fractions)
    _look_at_paths(args)

    from ndem_ocp.bench.arms import check_arms
    from ndem_ocp.bench.options import batch_sizes_of, common_of
    from ndem_ocp.bench.step import StepBench
    from ndem_ocp.bench.tables import head_lines, ratios_line, step_table

    check_arms(arms)
    common = common_of(args)
    sizes = batch_sizes_of(args.batch_sizes, common.device)
    bench = StepBench(common, arms, memory=not args.no_memory)
    print(head_lines(bench.result()), flush=True)
    bench.run(sizes, *_rounds(args, common.device))
    for setting in bench.settings:
        print(f"\n{step_table(setting)}")
    for note in bench.notes:
        print(note)
    print()
    code = _finish(args, bench)
    print(ratios_line(bench.settings), flush=True)
    return code


def run_inference(args: argparse.Namespace) -> int:
    """Measure, print a table, write JSON."""
    _look_at_paths(args)

    from ndem_ocp.bench.inference import InferenceBench
    from ndem_ocp.bench.options import batch_sizes_of, common_of
    from ndem_ocp.bench.tables import head_lines, inference_table

    common = common_of(args)
    sizes = batch_sizes_of(args.batch_sizes, common.device)
    if sizes is None:
        raise BenchError("--batch-sizes max is for ndem bench step: give numbers here.")
    bench = InferenceBench(common, args.checkpoint, args.unsafe)
    print(head_lines(bench.result()), flush=True)
    bench.run(sizes, *_rounds(args, common.device))
    print(f"\n{inference_table(bench.settings)}\n")
    return _finish(args, bench)


def run_data(args: argparse.Namespace) -> int:
    """Measure, print a table and the workers that models need, write JSON."""
    _look_at_paths(args)

    from ndem_ocp.bench.batches import find_data
    from ndem_ocp.bench.loading import LoadingBench, model_speeds, workers_needed
    from ndem_ocp.bench.options import at_least, device_of
    from ndem_ocp.bench.tables import data_table

    device_of(args)
    for workers in args.workers:
        at_least("--workers", workers, 0)
    at_least("--repeats", args.repeats, 1)
    at_least("--batch-size", args.batch_size, 1)
    at_least("--batches", args.batches, 2)
    speeds = {} if args.step is None else model_speeds(args.step)
    if args.atoms_per_second is not None:
        speeds = {"the model": args.atoms_per_second}
    progress = not args.no_progress
    bench = LoadingBench(find_data(args.data, progress), args.batch_size, args.batches, args.seed)
    bench.run(sorted(set(args.workers)), args.repeats, progress)
    result = bench.result()
    needed = {
        name: {"atoms_per_s": speed, "workers": workers_needed(result["rows"], speed)}
        for name, speed in speeds.items()
    }
    print(data_table(result, needed))
    return _finish(args, bench, needed=needed)


def run_scaling(args: argparse.Namespace) -> int:
    """Measure axis by axis, print each table, write JSON after each."""
    arms = arms_of(args.arms, [])
    _look_at_paths(args)

    from ndem_ocp.bench.arms import check_arms
    from ndem_ocp.bench.options import at_least, common_of, write_result
    from ndem_ocp.bench.scaling import ScalingBench
    from ndem_ocp.bench.tables import head_lines, scaling_table

    check_arms(arms)
    common = common_of(args)
    batch_size = at_least("--batch-size", args.batch_size, 1)
    bench = ScalingBench(common, arms, batch_size)
    print(head_lines(bench.result()), flush=True)
    for axis in bench.run(args.axes, *_rounds(args, common.device)):
        result = bench.result()
        if axis in result["axes"]:
            print(f"\n{scaling_table(axis, result['axes'][axis])}", flush=True)
        write_result(args.out, result, say=False)
    return _finish(args, bench)


def _finish(args: argparse.Namespace, bench: Any, **more: Any) -> int:
    """Write the measurements, and say so if they are incomplete."""
    from ndem_ocp.bench.options import write_result

    if bench.interrupted:
        print("Interrupted: these are the measurements so far.")
    write_result(args.out, {**bench.result(), **more})
    return INTERRUPTED if bench.interrupted else 0


def arms_of(arms: list[str], fractions: list[float]) -> list[str]:
    """Arms in the order given, upstream first, then those of the fractions.

    Raises:
        BenchError: for a fraction outside (0, 1].
    """
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise BenchError(f"--fractions {fraction:g}: must be more than 0 and at most 1.")
    return list(dict.fromkeys(["upstream", *arms, *(f"ndem@{f:g}" for f in fractions)]))
