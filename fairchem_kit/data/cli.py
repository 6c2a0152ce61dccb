"""``ndem data check``, ``demo`` and ``demo-relaxations``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from fairchem_kit.commands.options import (
    add_format,
    add_no_progress,
    add_seed,
    add_workers,
    add_writing,
    at_least,
)
from fairchem_kit.files import existing

from .errors import DataError


def configure_check(parser: argparse.ArgumentParser) -> None:
    """``ndem data check``."""
    parser.description = (
        "Exit code 1 if there are problems (with --strict also if there are warnings)."
    )
    add = parser.add_argument
    add("path", metavar="DIR", help="a data set, the directory of one split, or one file of it")
    add("--strict", action="store_true", help="warnings count as problems")
    add(
        "--max-force",
        type=float,
        default=50.0,
        metavar="F",
        help="report forces above F eV/A on free atoms (default: %(default)s)",
    )
    add(
        "--min-distance",
        type=float,
        default=0.5,
        metavar="D",
        help="report atoms closer than D A (default: %(default)s)",
    )
    add(
        "--show",
        type=int,
        default=20,
        metavar="N",
        help="number of findings to print (default: 20)",
    )
    add("--json", metavar="FILE", help="write findings and statistics to this file")
    add_workers(parser)
    add_no_progress(parser)
    parser.set_defaults(func=_run_check)


def configure_demo(parser: argparse.ArgumentParser) -> None:
    """``ndem data demo``."""
    parser.description = (
        "Energies and forces are from ASE's effective medium theory, for trying the "
        "software, not for chemistry."
    )
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="writes DIR/train, DIR/val_id, DIR/val_ood")
    add("--size", choices=("small", "default"), default="default", help="small: for tests")
    add_format(parser)
    add_seed(parser, "the structures")
    add_writing(parser)
    parser.set_defaults(func=_run_demo)


def configure_demo_relaxations(parser: argparse.ArgumentParser) -> None:
    """``ndem data demo-relaxations``."""
    parser.description = "New systems of the demo's metals and adsorbates, relaxed to 0.02 eV/A."
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="writes DIR/relaxation_0000_....traj")
    add("--systems", type=at_least(1), default=8, metavar="N", help="default: 8")
    add("--size", choices=("small", "default"), default="default", help="size of the demo's data")
    add_seed(parser, "the systems", default=1000)
    add_workers(parser)
    add_no_progress(parser)
    parser.set_defaults(func=_run_demo_relaxations)


def _run_check(args: argparse.Namespace) -> int:
    existing(args.path, DataError)

    from .check import check_dataset
    from .record_check import CheckOptions
    from .report import print_check, write_check

    if args.json:  # before a long check
        folder = Path(args.json).resolve().parent
        if not folder.is_dir():
            raise DataError(f"--json {args.json}: its folder does not exist; create it first")
        if not os.access(folder, os.W_OK):
            raise DataError(f"--json {args.json}: its folder cannot be written to")
    options = CheckOptions(max_force=args.max_force, min_distance=args.min_distance)
    reports = check_dataset(args.path, options, workers=args.workers, progress=not args.no_progress)
    print_check(reports, args.show)
    if args.json:
        write_check(args.json, reports, options)
    severities = {finding.severity for report in reports for finding in report.findings}
    return int("error" in severities or (args.strict and "warning" in severities))


def _run_demo(args: argparse.Namespace) -> int:
    from .demo import make_demo
    from .report import print_conversion

    entry = make_demo(
        args.out,
        size=args.size,
        seed=args.seed,
        form=args.format,
        overwrite=args.overwrite,
        workers=args.workers,
        progress=not args.no_progress,
    )
    print_conversion(args.out, entry)
    return 0


def _run_demo_relaxations(args: argparse.Namespace) -> int:
    from .demo_relaxations import make_relaxations

    sources = make_relaxations(args.out, args.systems, args.size, args.seed)
    print(f"wrote {len(sources)} trajectories to {args.out}")
    return 0
