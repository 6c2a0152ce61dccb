"""The argument parser of ``ndem``."""

from __future__ import annotations

from collections.abc import Sequence

from fairchem_kit import __version__
from fairchem_kit.commands.parser import Parser, UsageError, make_parser
from ndem_ocp.commands.table import COMMANDS, GROUPS

__all__ = ["UsageError", "build_parser"]

ABOUT = "NDeM for fairchem: data, training here and on SLURM, benchmarks, evaluation, reports."


def build_parser(words: Sequence[str] | None = None) -> Parser:
    """The parser of all commands, or with the arguments of the one in ``words`` only."""
    parser = Parser(prog="ndem", description=ABOUT)
    parser.add_argument("--version", action="version", version=f"ndem_ocp {__version__}")
    return make_parser(parser, COMMANDS, GROUPS, words)
