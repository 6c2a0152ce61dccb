"""Sources of data that are sets of molecules, read whole and split by number or by index files."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fairchem_kit.commands.options import add_seed, add_writing, chosen
from fairchem_kit.files import existing

from .errors import DataError
from .index_split import SplitOptions
from .lock import one_writer
from .split import TRAIN
from .staging import check_target
from .writer import DataSet, write


@dataclass(frozen=True)
class MoleculeSource:
    """A set of molecules. Options of its own are fields, and arguments of the same name.

    Attributes:
        description: for ``--help``. default_split: molecules for training, validation and test;
            None: all others.
        split: how the molecules are divided. overwrite: replace an older conversion.
    """

    description = ""
    default_split = (0, 0, None)

    split: SplitOptions = field(default_factory=SplitOptions)
    overwrite: bool = False

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add ``inputs``, which :meth:`read` takes, and the options of its own."""

    def paths(self, inputs: Any) -> list[str | Path]:
        """The files and folders that must exist."""
        return list(inputs)

    def read(self, inputs: Any, progress: bool) -> DataSet:
        """The checked molecules, their splits, and what dataset.json has to say.

        Raises:
            DataError: bad options, unusable files, impossible splits.
        """
        raise NotImplementedError

    @one_writer
    def convert(
        self, inputs: Any, out: str | Path, *, workers: int = 1, progress: bool = True
    ) -> dict[str, Any]:
        """Convert to ``out/train``, ``out/val`` and ``out/test``.

        Args:
            inputs: as on the command line. out: the data set; written under a temporary name and
                moved there when complete. workers: processes. progress: show bars.

        Returns:
            This conversion's entry in dataset.json.

        Raises:
            DataError: as :meth:`read`; or an existing target.
        """
        out = Path(out)
        check_target(out, None, self.overwrite)
        found = self.read(inputs, progress)
        entry = {"options": asdict(self), **found.entry, "pbc": ["FFF"]}
        made = replace(found, entry=entry, measured=(TRAIN,))
        return write(out, made, workers=workers, progress=progress)

    @classmethod
    def configure(cls, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.description = cls.description
        parser.set_defaults(func=cls.run)
        cls.add_arguments(parser)
        train, val, _ = cls.default_split
        add = parser.add_argument
        add("--out", required=True, metavar="DIR", help="writes DIR/train, DIR/val, DIR/test")
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
        add_writing(parser)

    @classmethod
    def run(cls, args: argparse.Namespace) -> int:
        """Convert, and print what was made."""
        source = chosen(cls, args, split=chosen(SplitOptions, args))
        for path in source.paths(args.inputs):
            existing(path, DataError)

        from .report import print_molecules

        entry = source.convert(
            args.inputs, args.out, workers=args.workers, progress=not args.no_progress
        )
        print_molecules(args.out, entry)
        return 0
