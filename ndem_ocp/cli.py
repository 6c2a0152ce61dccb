"""The ``ndem`` command: data, training here and on SLURM, benchmarks, evaluation, reports."""

from __future__ import annotations

import argparse
import sys

import ndem_ocp
from ndem_ocp import demo, doctor, sweep
from ndem_ocp.bench import cli as bench_cli
from ndem_ocp.bench.errors import BenchError
from ndem_ocp.checkpoints import CheckpointError
from ndem_ocp.data import cli as data_cli
from ndem_ocp.data.errors import DataError
from ndem_ocp.evaluation import command as evaluation
from ndem_ocp.evaluation import relax_command as relaxation
from ndem_ocp.evaluation import submission_command as submission
from ndem_ocp.evaluation.errors import EvaluationError
from ndem_ocp.inference import export
from ndem_ocp.launch import requeue, status, submit, train
from ndem_ocp.launch.errors import LaunchError
from ndem_ocp.report.dashboard import command as dashboard
from ndem_ocp.report.dashboard.errors import DashboardError
from ndem_ocp.report.page import command as report
from ndem_ocp.report.page.errors import ReportError


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ndem", description=__doc__)
    parser.add_argument("--version", action="version", version=f"ndem_ocp {ndem_ocp.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    data_cli.add_parser(commands)
    doctor.add_parser(commands)
    demo.add_parser(commands)
    bench_cli.add_parser(commands)
    sweep.add_parser(commands)
    train.add_parser(commands)
    submit.add_parser(commands)
    status.add_parser(commands)
    requeue.add_parser(commands)
    report.add_parser(commands)
    dashboard.add_parser(commands)
    evaluation.add_parser(commands)
    relaxation.add_parser(commands)
    submission.add_parser(commands)
    export.add_parser(commands)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a known kind of bad input is one sentence on stderr and exit status 2."""
    parser = build_parser()
    given = sys.argv[1:] if arguments is None else list(arguments)
    # argparse cannot tell what follows -- from a missing positional argument
    head, overrides = given, []
    if "--" in given:
        head, overrides = given[: given.index("--")], given[given.index("--") + 1 :]
    args, unknown = parser.parse_known_args(head)
    args.given = given  # for commands that start themselves in several processes
    if unknown and not hasattr(args, "unknown"):
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if unknown:
        args.unknown = unknown
    if overrides and not hasattr(args, "overrides"):
        parser.error(f"ndem {args.command} takes nothing after --.")
    if overrides:
        args.overrides = overrides
    try:
        return int(args.func(args) or 0)
    except (
        BenchError,
        CheckpointError,
        DataError,
        LaunchError,
        ReportError,
        DashboardError,
        EvaluationError,
        demo.DemoError,
        sweep.SweepError,
    ) as error:
        print(f"ndem: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ndem: interrupted.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
