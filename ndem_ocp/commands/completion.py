"""``ndem completion``: a script that completes ndem's commands, options and files in your shell.

    ndem completion bash > ~/.local/share/bash-completion/completions/ndem
    ndem completion zsh > DIRECTORY_OF_FPATH/_ndem

The script contains all commands and options, so that pressing TAB does not start Python. Create it
again after an update. Creating it needs the package shtab (pip install shtab).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fairchem_kit.commands.options import describe

SHELLS = ("bash", "zsh", "tcsh")
# metavars of arguments that are files or directories but do not have type=Path
_FILES = ("CHECKPOINT", "FILE.npz", "OUT", "SOURCE", "FILE")


def configure(parser: argparse.ArgumentParser) -> None:
    """``ndem completion``."""
    describe(parser, __doc__)
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    from ndem_ocp.commands.parser import build_parser

    parser = build_parser()
    _complete_paths(parser, shtab)
    print(shtab.complete(parser, shell=args.shell))
    return 0


def _complete_paths(parser: argparse.ArgumentParser, shtab: Any) -> None:
    """Mark the arguments that are files or directories, in all commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _complete_paths(below, shtab)
        elif action.metavar == "DIR":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.type is Path or action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
