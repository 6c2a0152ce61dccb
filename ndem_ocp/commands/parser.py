"""The argument parser of ``ndem``, with the arguments of the requested command only."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import ndem_ocp
from ndem_ocp.commands.table import COMMANDS, GROUPS
from ndem_ocp.errors import NDeMError

ABOUT = "NDeM for fairchem: data, training here and on SLURM, benchmarks, evaluation, reports."


class UsageError(NDeMError):
    """A wrong command line; the message names the argument."""


class Parser(argparse.ArgumentParser):
    """A parser that raises :class:`UsageError` instead of printing errors itself."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)  # argparse's own ignores disk errors


def build_parser(words: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The parser of all commands.

    Args:
        words: the command line. Only the module of this command is imported and adds its arguments;
            ``None``: those of all commands.
    """
    asked = None if words is None else " ".join(w for w in words if not w.startswith("-"))
    parser = Parser(prog="ndem", description=ABOUT)
    parser.add_argument("--version", action="version", version=f"ndem_ocp {ndem_ocp.__version__}")
    top = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    groups: dict[str, Any] = {}
    for command in COMMANDS:
        group, _, last = command.name.rpartition(" ")
        if group and group not in groups:
            above = top.add_parser(group, help=GROUPS[group], description=GROUPS[group])
            groups[group] = above.add_subparsers(
                dest=f"{group}_command", required=True, metavar="COMMAND"
            )
        own = groups.get(group, top).add_parser(last, help=command.help, description=command.help)
        if asked is None or f"{asked} ".startswith(f"{command.name} "):
            command.configure(own)
    return parser
