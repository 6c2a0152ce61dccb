"""A program of several commands: its parser, with the arguments of the requested command only."""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from fairchem_kit.errors import UserError


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: one or two words after the program's. help: one line. where: ``module`` or
            ``module:function``. The module has a function ``configure(parser)``, or one with the
            name after the colon, which adds the command's arguments to an
            ``argparse.ArgumentParser`` and sets ``func``, called as ``func(args) -> int`` for the
            exit status.
    """

    name: str
    help: str
    where: str

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Import its module, and add its arguments to ``parser``."""
        module, _, function = self.where.partition(":")
        getattr(importlib.import_module(module), function or "configure")(parser)


class UsageError(UserError):
    """A wrong command line; the message names the argument."""


class Parser(argparse.ArgumentParser):
    """A parser that raises :class:`UsageError` instead of printing errors itself."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def _get_value(self, action: argparse.Action, text: str) -> Any:
        """Comparisons with NaN are false, so checks of single options would let it pass."""
        value = super()._get_value(action, text)
        if isinstance(value, float) and not math.isfinite(value):
            raise argparse.ArgumentError(action, f"give a finite number, not {text}")
        return value

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)  # argparse's own ignores disk errors


def make_parser(
    program: Parser,
    commands: Sequence[Command],
    groups: Mapping[str, str],
    words: Sequence[str] | None = None,
) -> Parser:
    """Give a program its commands; returns it.

    Args:
        program: with the program's name and description. commands: all of them.
        groups: what the first word of those with two words stands for, in a line.
        words: the command line. Only the module of this command is imported and adds its arguments;
            ``None``: those of all commands.
    """
    asked = None if words is None else " ".join(w for w in words if not w.startswith("-"))
    top = program.add_subparsers(dest="command", required=True, metavar="COMMAND")
    above: dict[str, Any] = {}
    for command in commands:
        group, _, last = command.name.rpartition(" ")
        if group and group not in above:
            own = top.add_parser(group, help=groups[group], description=groups[group])
            above[group] = own.add_subparsers(
                dest=f"{group}_command", required=True, metavar="COMMAND"
            )
        own = above.get(group, top).add_parser(last, help=command.help, description=command.help)
        if asked is None or f"{asked} ".startswith(f"{command.name} "):
            command.configure(own)
    return program
