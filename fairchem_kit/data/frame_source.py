"""Sources of data that are files of frames: their command, with all of the conversion."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, fields

from fairchem_kit.commands.options import (
    add_format,
    add_labels,
    add_seed,
    add_system_key,
    add_tags,
    add_writing,
    chosen,
)

from .frame_files import FrameReader, expand
from .frames import LabelOptions


@dataclass(frozen=True)
class FrameSource(FrameReader):
    """Files of frames, converted to one data set.

    A subclass says in ``suffixes`` which files it reads, and yields their frames from
    :meth:`frames`, or from :meth:`read` if it can find a frame by its number. Splits, references,
    checks, statistics, writing and the options for them are here and the same for all.
    Options of its own are fields (the class is then a dataclass too) and arguments of the same
    name, added by ``add_arguments``.

    Attributes:
        description: for ``--help``.
        unit: of the energies, and per A of the forces; what ``--units`` is by default.
    """

    description = ""
    unit = "eV"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add options of its own."""

    @classmethod
    def configure(cls, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.description = cls.description
        parser.set_defaults(func=cls.run)
        cls.add_arguments(parser)
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
        add_tags(parser)
        add_labels(parser, cls.unit)
        add_system_key(parser)
        add_format(parser)
        add("--frames-per-shard", type=int, metavar="N", help="default: 1000, at most 64 shards")
        add_writing(parser)

    @classmethod
    def run(cls, args: argparse.Namespace) -> int:
        """Convert, and print what was made."""
        reader = chosen(cls, args)
        sources = expand(args.sources, reader)  # before torch is imported, as they may be missing

        from .convert import convert
        from .plan import ConvertOptions
        from .report import print_conversion

        labels = chosen(LabelOptions, args, unit=args.units)
        options = chosen(ConvertOptions, args, labels=labels, geometry=None)
        entry = convert(
            sources,
            args.out,
            options,
            provenance={"reader": asdict(reader)} if fields(cls) else None,
            workers=args.workers,
            progress=not args.no_progress,
        )
        print_conversion(args.out, entry)
        return 0
