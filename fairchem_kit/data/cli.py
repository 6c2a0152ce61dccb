"""``ndem data ase``, ``check`` and ``demo``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from fairchem_kit.commands.options import (
    add_labels,
    add_no_progress,
    add_overwrite,
    add_seed,
    add_workers,
)
from fairchem_kit.files import existing

from .errors import DataError


def configure_ase(parser: argparse.ArgumentParser) -> None:
    """``ndem data ase``."""
    parser.description = (
        "Convert .traj, .extxyz/.xyz and ASE databases (.db, .json) to sharded LMDBs."
    )
    add = parser.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="files, directories or glob patterns")
    add("--out", required=True, metavar="DIR", help="writes DIR/train/data.0000.lmdb, ...")
    add("--val-fraction", type=float, default=0.0, metavar="X", help="fraction for DIR/val")
    add("--test-fraction", type=float, default=0.0, metavar="X", help="fraction for DIR/test")
    add(
        "--split-by",
        choices=("system", "frame"),
        default="system",
        help="unit that is not divided (default: system, because frames of a trajectory are "
        "correlated)",
    )
    add_seed(parser, "the split")
    add("--split", metavar="NAME", help="put all frames into DIR/NAME; adds to an existing DIR")
    add(
        "--energy-reference",
        default="none",
        metavar="REF",
        help="none, last-frame (of each system), linear (per element, fitted on the training "
        "split), or a FILE.npz with `coeff` by atomic number (default: none)",
    )
    add("--max-force", type=float, metavar="F", help="drop frames above F eV/A on a free atom")
    add("--skip-bad", action="store_true", help="leave out unusable frames and list them")
    add(
        "--tags",
        choices=("auto", "keep"),
        default="auto",
        help="auto: derive tags that are not OC20's",
    )
    add_labels(parser)
    add("--system-key", metavar="KEY", help="key in atoms.info (or database column) of the system")
    _add_format(parser)
    add("--frames-per-shard", type=int, metavar="N", help="default: 1000, at most 64 shards")
    add_overwrite(parser)
    add_workers(parser)
    add_no_progress(parser)
    parser.set_defaults(func=_run_ase)


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        choices=("lmdb", "aselmdb"),
        default="lmdb",
        help="lmdb: S2EF for fairchem 1.10; aselmdb: for fairchem 2 (default: %(default)s)",
    )


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
    _add_format(parser)
    add_seed(parser, "the structures")
    add_overwrite(parser)
    add_workers(parser)
    add_no_progress(parser)
    parser.set_defaults(func=_run_demo)


def _run_ase(args: argparse.Namespace) -> int:
    from .sources import expand_sources

    sources = expand_sources(args.sources)  # before torch is imported, in case they are missing

    from .convert import convert
    from .frames import LabelOptions
    from .plan import ConvertOptions
    from .report import print_conversion

    labels = LabelOptions(args.energy_key, args.forces_key, args.system_key, args.tags, args.units)
    options = ConvertOptions(
        val_fraction=args.val_fraction,
        test_fraction=args.test_fraction,
        split_by=args.split_by,
        seed=args.seed,
        split=args.split,
        energy_reference=args.energy_reference,
        max_force=args.max_force,
        skip_bad=args.skip_bad,
        overwrite=args.overwrite,
        frames_per_shard=args.frames_per_shard,
        format=args.format,
        labels=labels,
    )
    entry = convert(
        sources,
        args.out,
        options,
        workers=args.workers,
        progress=not args.no_progress,
    )
    print_conversion(args.out, entry)
    return 0


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
