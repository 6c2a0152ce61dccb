"""``ndem data md17`` and ``ndem data qm9``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from fairchem_kit.commands.options import add_no_progress, add_overwrite, add_seed, add_workers
from fairchem_kit.files import existing

from .errors import DataError

if TYPE_CHECKING:
    from .index_split import SplitOptions


def configure_md17(parser: argparse.ArgumentParser) -> None:
    """``ndem data md17``."""
    parser.description = (
        "Convert the frames of one molecule: 950 for training, 50 for validation and all "
        "others for test, unless other numbers, index files or a test file are given."
    )
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE.npz", help="MD17, rMD17 or CCSD(T) layout")
    add("--out", required=True, metavar="DIR", help="writes DIR/train, DIR/val, DIR/test")
    add("--test-file", metavar="FILE.npz", help="test frames, never mixed with the others")
    add(
        "--labels",
        choices=("file", "original"),
        default="file",
        help="original: the MD17 labels, which rMD17 files have as old_energies and old_forces "
        "(default: file)",
    )
    add(
        "--units",
        choices=("file", "eV"),
        default="file",
        help="file: keep kcal/mol and kcal/mol/A; eV: convert to eV and eV/A (default: file)",
    )
    add(
        "--reference",
        choices=("mean", "none"),
        default="mean",
        help="subtracted from the energies: the mean of the training frames, recorded in "
        "dataset.json, or nothing (default: mean)",
    )
    _add_splits(parser, train=950, val=50)
    parser.set_defaults(func=_run_md17)


def configure_qm9(parser: argparse.ArgumentParser) -> None:
    """``ndem data qm9``."""
    parser.description = (
        "Convert QM9 without the 3,054 uncharacterised molecules: 110,000 molecules "
        "for training, 10,000 for validation and 10,831 for test, unless other numbers or index "
        "files are given."
    )
    add = parser.add_argument
    add(
        "source",
        metavar="SOURCE",
        help="PyTorch Geometric's raw folder, an npz file with qm9pack's names, or `qm9pack` "
        "(pip install qm9pack)",
    )
    add("--out", required=True, metavar="DIR", help="writes DIR/train, DIR/val, DIR/test")
    add(
        "--reference",
        choices=("atoms", "none"),
        default="atoms",
        help="subtracted from U0, U, H and G: QM9's energies of the free atoms, or nothing "
        "(default: atoms)",
    )
    _add_splits(parser, train=110_000, val=10_000)
    parser.set_defaults(func=_run_qm9)


def _add_splits(parser: argparse.ArgumentParser, train: int, val: int) -> None:
    add = parser.add_argument
    add("--train", type=int, metavar="N", help=f"number for training (default: {train})")
    add("--val", type=int, metavar="N", help=f"number for validation (default: {val})")
    add("--test", type=int, metavar="N", help="number for test (default: all others)")
    add_seed(parser, "the permutation, numpy's default_rng as in TorchMD-NET", default=1)
    for name in ("train", "val", "test"):
        add(
            f"--{name}-indices",
            metavar="FILE",
            help=f"file with indices for {name}, from 0, one per line",
        )
    add(
        "--splits",
        metavar="FILE.npz",
        help="file with idx_train, idx_val, idx_test, as from TorchMD-NET",
    )
    add_overwrite(parser)
    add_workers(parser)
    add_no_progress(parser)


def _splits(args: argparse.Namespace) -> SplitOptions:
    from .index_split import SplitOptions

    return SplitOptions(
        train=args.train,
        val=args.val,
        test=args.test,
        seed=args.seed,
        train_indices=args.train_indices,
        val_indices=args.val_indices,
        test_indices=args.test_indices,
        splits=args.splits,
    )


def _run_md17(args: argparse.Namespace) -> int:
    for path in (*args.files, *filter(None, [args.test_file])):
        existing(path, DataError)

    from .md17 import Md17Options, convert_md17
    from .report import print_molecules

    options = Md17Options(
        test_file=args.test_file,
        labels=args.labels,
        units=args.units,
        reference=args.reference,
        split=_splits(args),
        overwrite=args.overwrite,
    )
    entry = convert_md17(
        args.files, args.out, options, workers=args.workers, progress=not args.no_progress
    )
    print_molecules(args.out, entry)
    return 0


def _run_qm9(args: argparse.Namespace) -> int:
    if args.source != "qm9pack":
        existing(args.source, DataError)

    from .qm9 import Qm9Options, convert_qm9
    from .report import print_molecules

    options = Qm9Options(args.reference, _splits(args), args.overwrite)
    entry = convert_qm9(
        args.source, args.out, options, workers=args.workers, progress=not args.no_progress
    )
    print_molecules(args.out, entry)
    return 0
