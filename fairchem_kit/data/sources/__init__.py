"""The sources of data. Each is one file here with one class under :func:`register`; the file's name
is that of its command ``ndem data NAME``, its first line the command's help.

For files of frames the class is a :class:`fairchem_kit.data.frame_source.FrameSource`, which has
all of the command but the reading; for sets of molecules that fit into memory a
:class:`fairchem_kit.data.molecule_source.MoleculeSource`. All go to ``writer``.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any, TypeVar

from fairchem_kit.commands.parser import Command

_classes: dict[str, Any] = {}
_Class = TypeVar("_Class")


def register(source: _Class) -> _Class:
    """Decorate the class of a file here. Its ``configure(parser)`` adds the command's arguments and
    sets ``func``, and imports nothing heavy."""
    _classes[source.__module__] = source
    return source


class SourceCommand(Command):
    """The command of a source; ``where`` is its module."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        importlib.import_module(self.where)
        _classes[self.where].configure(parser)


def commands() -> list[SourceCommand]:
    """The commands of all sources, without importing these."""
    found = []
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        with path.open(encoding="utf-8") as stream:
            help_ = stream.readline().strip().strip('"').rstrip(".")
        name = f"data {path.stem.replace('_', '-')}"
        found.append(SourceCommand(name, help_, f"{__name__}.{path.stem}"))
    return found
