"""``ndem bench``: what things cost on this machine."""

from __future__ import annotations

import argparse
from typing import Any

INTERRUPTED = 130


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "bench", help="what a step, an evaluation, reading data cost here"
    )
    commands = parser.add_subparsers(dest="bench_command", required=True, metavar="WHAT")
    _add_step(commands)


def _add_step(commands: Any) -> None:
    parser = commands.add_parser(
        "step", help="a training step: upstream, naive NDeM, ours, ours with NDeM, DeNS"
    )
    from ndem_ocp.bench.arms import ARMS, DEFAULT_ARMS
    from ndem_ocp.bench.options import add_common

    add_common(parser)
    parser.add_argument("--batch-sizes", nargs="+", default=["4"], metavar="N",
                        help="structures per step, or max (CUDA); default: 4")  # fmt: skip
    parser.add_argument("--arms", nargs="+", default=list(DEFAULT_ARMS), metavar="ARM",
                        help=f"of {', '.join(ARMS)} (default: {' '.join(DEFAULT_ARMS)})")  # fmt: skip
    parser.add_argument("--fractions", nargs="+", type=float, default=[], metavar="F",
                        help="also NDeM with a second view of so much of each batch")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=15, help="rounds that count")
    parser.add_argument("--warmup", type=int, default=3, help="rounds before them")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.set_defaults(func=run_step)


def run_step(args: argparse.Namespace) -> int:
    from ndem_ocp.bench.options import at_least, batch_sizes_of, common_of, write_result
    from ndem_ocp.bench.step import StepBench
    from ndem_ocp.bench.tables import machine_line, ratios_line, step_table

    common = common_of(args)
    sizes = batch_sizes_of(args.batch_sizes, common.device)
    at_least("--repeats", args.repeats, 1)
    at_least("--warmup", args.warmup, 0)
    arms = arms_of(args.arms, args.fractions)
    bench = StepBench(common, arms, memory=not args.no_memory)
    print(f"{bench.result()['model']}; {bench.data}; float32{', amp' if common.amp else ''}")
    bench.run(sizes, args.repeats, args.warmup)
    result = bench.result()
    print(machine_line(result["device"], result["threads"]))
    for setting in bench.settings:
        print(f"\n{step_table(setting)}")
    for note in bench.notes:
        print(note)
    if bench.interrupted:
        print("Interrupted: this is what was measured until then.")
    print()
    write_result(args.out, result)
    print(ratios_line(bench.settings), flush=True)
    return INTERRUPTED if bench.interrupted else 0


def arms_of(arms: list[str], fractions: list[float]) -> list[str]:
    """Arms in the order given, upstream first, then those of the fractions.

    Raises:
        BenchError: for an arm that there is not, or a fraction outside (0, 1].
    """
    from ndem_ocp.bench.arms import ARMS
    from ndem_ocp.bench.errors import BenchError

    for arm in arms:
        if arm not in ARMS:
            raise BenchError(f"--arms {arm}: choose from {', '.join(ARMS)}.")
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise BenchError(f"--fractions {fraction:g}: more than 0, at most 1.")
    wanted = dict.fromkeys(["upstream", *arms, *(f"ndem@{f:g}" for f in fractions)])
    return list(wanted)
