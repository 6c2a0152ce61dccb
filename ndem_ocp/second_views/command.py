"""``ndem data second-views``."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from fairchem_kit.commands.options import add_no_progress, add_seed, at_least
from fairchem_kit.files import existing
from fairchem_kit.words import counted


def configure(parser: argparse.ArgumentParser) -> None:
    """``ndem data second-views``."""
    parser.description = (
        "Computes, for displacements eps of each record's free atoms, how a calculator's energy "
        "and forces change with them. Training adds the change to the DFT label (task.ndem.target: "
        "second_views). It only needs ASE, NumPy, lmdb and the calculator: run it in the "
        "environment in which the calculator is installed."
    )
    add = parser.add_argument
    add("path", metavar="DIR", help="the training split (its folder, or one .lmdb file)")
    add(
        "--calculator",
        required=True,
        metavar="SPEC",
        help="any ASE calculator, as MODULE:CALL, such as "
        "'sevenn.calculator:SevenNetCalculator(model=\"7net-0\")' or './mine.py:calculator()'; or "
        "data: no calculator, but an energy fitted to the data's forces",
    )
    add("--out", required=True, metavar="FILE", help="the file to write, such as views.lmdb")
    add(
        "--draws",
        type=at_least(1),
        default=16,
        metavar="K",
        help="displacements per structure (default: 16)",
    )
    add(
        "--sigma",
        type=float,
        nargs=2,
        default=(0.02, 0.05),
        metavar=("MIN", "MAX"),
        help="range of the displacements' standard deviation, A (default: 0.02 0.05; metal "
        "surfaces: 0.002 0.01)",
    )
    add_seed(parser, "the displacements")
    add(
        "--scale",
        default="fit",
        metavar="S",
        help="factor for the calculator's changes: a number, or fit (least squares on pairs of "
        "near frames of the data; the default)",
    )
    add(
        "--correction",
        choices=("fit", "none"),
        default="fit",
        help="fit: look for an energy of pairs and triples of atoms, fitted to the data's forces, "
        "that makes the calculator's change of forces better over pairs of frames left out of the "
        "fit (the default); none: the calculator as it is",
    )
    add(
        "--max-error",
        type=float,
        default=0.5,
        metavar="X",
        help="refuse a calculator with a larger error of the change of forces (default: 0.5 = 50 "
        "%%)",
    )
    add(
        "--pairs",
        type=at_least(1),
        default=60,
        metavar="N",
        help="number of pairs on which it is tested (default: 60)",
    )
    add(
        "--skip-failed",
        action="store_true",
        help="leave out structures on which the calculator fails, and count them",
    )
    add(
        "--workers",
        type=at_least(1),
        default=1,
        metavar="N",
        help="processes, each with its own calculator (default: 1)",
    )
    add_no_progress(parser)
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    path = _split(existing(args.path))
    from fairchem_kit.data.errors import DataError

    from .draws import Draws
    from .make import MakeOptions, make_second_views

    try:
        scale = None if args.scale == "fit" else float(args.scale)
        known = scale is None or (math.isfinite(scale) and scale != 0)
    except ValueError:
        known = False
    if not known:
        raise DataError(f"--scale {args.scale}: give a number that is finite and not 0, or fit")
    options = MakeOptions(
        draws=Draws(args.draws, *args.sigma, args.seed),
        scale=scale,
        correct=args.correction == "fit",
        max_error=args.max_error,
        pairs=args.pairs,
        workers=args.workers,
        skip_failed=args.skip_failed,
        progress=not args.no_progress,
    )
    try:
        meta = make_second_views(path, args.calculator, args.out, options)
    except KeyboardInterrupt:
        print(
            f"stopped; what is done is in {args.out}, and the same command continues",
            file=sys.stderr,
        )
        return 130
    print(summary(args.out, meta))
    return 0


def _split(path: Path) -> Path:
    """The training split, if the folder of the whole data set was given."""
    train = path / "train"
    return train if train.is_dir() and not list(path.glob("*.lmdb")) else path


def summary(out: str, meta: dict[str, Any]) -> str:
    """A summary of the file, and how to train with it."""
    counts, made_of = meta["counts"], meta["made_of"]
    draws = made_of["draws"]
    left_out = [
        f"{counts[key]} {text}"
        for key, text in (
            ("unlabelled", "without labels"),
            ("failed", "on which the calculator failed"),
        )
        if counts.get(key)
    ]
    error = meta.get("relative_error")
    return "\n".join(
        [
            f"{out}: {counted(draws['count'], 'second view')} of "
            f"{counted(counts['records'], 'record')}"
            + (f" (left out: {', '.join(left_out)})" if left_out else ""),
            f"{_labelled_by(meta)}; relative error of the change of forces "
            + ("not measured" if error is None else f"{error:.3f}"),
            "train with:  task: {ndem: {coefficient: 1, target: second_views, "
            f"second_views: {out}}}}}",
        ]
    )


def _labelled_by(meta: dict[str, Any]) -> str:
    from fairchem_kit.calculators.spec import DATA, Provenance

    calculator = Provenance(**meta["made_of"]["calculator"])
    found = meta.get("correction")
    fitted = f"{counted(len(found['coefficients']), 'coefficient')} fitted" if found else ""
    if calculator.spec == DATA:
        return f"an energy with {fitted} to the data"
    corrected = f", corrected with {fitted} to the data" if found else ""
    return f"calculator: {calculator}{corrected}; s = {meta['scale']:.4g}"
