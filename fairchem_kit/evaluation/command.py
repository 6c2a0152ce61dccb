"""``ndem eval``: a checkpoint's errors on several splits, as in OC20's tables.

The checkpoint contains its configuration, so nothing else is needed. Errors are fairchem's own
metrics, equal to those of ``fairchem --mode validate``. Files written to --out:

    metrics.json         every number, with checkpoint, weights, data, command and hardware
    table.md, table.csv  the table
    SPLIT.samples.csv    one row per structure (fairchem_kit.evaluation.samples lists the columns)
    SPLIT.atoms.npz      one entry per atom: element, tag, true and predicted force
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fairchem_kit.commands.options import describe
from fairchem_kit.evaluation.shared import add_common, check_numbers, default_out, in_ranks


def configure(parser: argparse.ArgumentParser) -> None:
    """``ndem eval``."""
    describe(parser, __doc__)
    parser.add_argument("checkpoint", type=Path, help="checkpoint.pt or best_checkpoint.pt")
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="DIR",
        help="splits: directories of LMDBs, or NAME=DIR",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: eval/RUN-CHECKPOINT")
    add_common(parser)
    parser.add_argument(
        "--curvature", action="store_true",
        help="also evaluate the change of forces between near frames of a system",
    )  # fmt: skip
    parser.add_argument("--no-atoms", action="store_true", help="do not write SPLIT.atoms.npz")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate; with --ranks, in separate processes."""
    check_numbers(args)

    from fairchem_kit.evaluation.splits import look_inside, read_splits

    splits = read_splits(args.data)
    for split in splits:
        look_inside(split.path)

    from fairchem_kit.evaluation.evaluation import evaluate_splits

    out = args.out or default_out("eval", args.checkpoint)
    return in_ranks(args, lambda rank: evaluate_splits(args, splits, out, rank), out)
