"""``ndem export``: write a checkpoint that plain fairchem loads without this package.

Writes the model's weights, without auxiliary head and optimizer, and the configuration in
fairchem's own names.
"""

from __future__ import annotations

import argparse

from fairchem_kit.commands.options import add_overwrite, add_unsafe, add_weights, describe
from fairchem_kit.files import existing_file


def configure(parser: argparse.ArgumentParser) -> None:
    """``ndem export``."""
    describe(parser, __doc__)
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="such as checkpoints/RUN/best_checkpoint.pt")
    add("out", metavar="OUT", help="the file to write, such as model.pt")
    add_weights(parser)
    add_unsafe(parser)
    add_overwrite(parser, "OUT")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Export, and print what was written."""
    existing_file(args.checkpoint)

    from ndem_ocp.export.export import export_checkpoint

    report = export_checkpoint(args.checkpoint, args.out, args.weights, args.overwrite, args.unsafe)
    print(report)
    return 0
