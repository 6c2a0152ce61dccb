"""Options shared by several commands, with the same meaning and help everywhere."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import fields
from typing import Any

#: Which weights of a checkpoint: the moving average where there is one, always it, the last.
AUTO, EMA, LAST = "auto", "ema", "last"
KINDS = (AUTO, EMA, LAST)
#: numpy's limit
LARGEST_SEED = 2**32 - 1


def describe(parser: argparse.ArgumentParser, text: str | None) -> None:
    """Show ``text``, a module's docstring, at the beginning of ``--help``, without rewrapping
    it."""
    parser.description = text
    parser.formatter_class = argparse.RawDescriptionHelpFormatter


def at_least(least: int) -> Callable[[str], int]:
    """A ``type=`` for whole numbers of at least ``least``."""

    def whole_number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {value}")
        return value

    whole_number.__name__ = "whole number"  # argparse: invalid whole number value: 'x'
    return whole_number


def add_workers(parser: argparse.ArgumentParser) -> None:
    """``--workers`` of commands that convert and check."""
    parser.add_argument(
        "--workers",
        type=at_least(1),
        default=min(4, os.cpu_count() or 1),
        metavar="N",
        help="number of processes; does not change the result (default: 4, or fewer on fewer "
        "cores)",
    )


def add_no_progress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-progress", action="store_true", help="do not show the progress")


def add_overwrite(
    parser: argparse.ArgumentParser, what: str = "what this command wrote before"
) -> None:
    parser.add_argument("--overwrite", action="store_true", help=f"replace {what}")


def add_writing(parser: argparse.ArgumentParser) -> None:
    """``--overwrite``, ``--workers`` and ``--no-progress`` of commands that write a data set."""
    add_overwrite(parser)
    add_workers(parser)
    add_no_progress(parser)


def chosen(kind: Any, args: argparse.Namespace, **more: Any) -> Any:
    """An instance of a dataclass with the arguments of the same names, but for ``more``."""
    names = {field.name for field in fields(kind)} - set(more)
    return kind(**{name: getattr(args, name) for name in names}, **more)


def add_format(parser: argparse.ArgumentParser) -> None:
    """``--format`` of commands that write frames."""
    parser.add_argument(
        "--format",
        choices=("lmdb", "aselmdb"),
        default="lmdb",
        help="lmdb: S2EF for fairchem 1.10; aselmdb: for fairchem 2 (default: %(default)s)",
    )


def add_seed(parser: argparse.ArgumentParser, of: str, default: int = 0) -> None:
    help_ = f"random seed for {of} (default: {default})"
    parser.add_argument("--seed", type=seed_of, default=default, metavar="N", help=help_)


def seed_of(text: str) -> int:
    """A seed that numpy and torch take.

    Raises:
        argparse.ArgumentTypeError: not a whole number from 0 to 2**32 - 1.
    """
    if not text.isdecimal() or int(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {LARGEST_SEED}")
    return int(text)


def add_weights(parser: argparse.ArgumentParser) -> None:
    """``--weights`` of commands that read a checkpoint."""
    parser.add_argument(
        "--weights",
        choices=KINDS,
        default=AUTO,
        help="ema: the moving average; last: the weights of the last step; auto (default): ema if "
        "the checkpoint has it",
    )


def add_unsafe(parser: argparse.ArgumentParser) -> None:
    """``--unsafe`` of commands that read a checkpoint."""
    parser.add_argument(
        "--unsafe",
        action="store_true",
        help="also read checkpoints with more than weights and plain values; these can run any "
        "code that their author put there",
    )


def add_amp(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--amp", action="store_true", help="mixed precision, on a GPU")


def add_cpu(parser: argparse._ActionsContainer, what: str = "use no GPU") -> None:
    parser.add_argument("--cpu", action="store_true", help=what)


def add_gpu(parser: argparse._ActionsContainer, what: str) -> None:
    parser.add_argument("--gpu", action="store_true", help=what)


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--gpu`` and ``--cpu``, of which at most one may be given; see ``launch.device``."""
    group = parser.add_mutually_exclusive_group()
    add_gpu(group, "require a GPU; default: use one if it is visible")
    add_cpu(group, "use the CPU, even if there is a GPU")


ENERGY_UNITS = ("eV", "kcal/mol", "kJ/mol")  # keys of data.units.IN_EV


def add_tags(parser: argparse.ArgumentParser) -> None:
    """``--tags`` of commands that convert frames."""
    parser.add_argument(
        "--tags",
        choices=("auto", "keep"),
        default="auto",
        help="auto: derive tags that are not OC20's",
    )


def add_system_key(parser: argparse.ArgumentParser) -> None:
    help_ = "key in atoms.info (or database column) of the system"
    parser.add_argument("--system-key", metavar="KEY", help=help_)


def add_labels(parser: argparse.ArgumentParser, unit: str = "eV") -> None:
    """``--energy-key``, ``--forces-key``, ``--units`` (``unit`` by default) of commands that read a
    user's frames."""
    add = parser.add_argument
    add("--energy-key", metavar="KEY", help="key of the energy in atoms.info; default: ASE's")
    add(
        "--forces-key",
        metavar="KEY",
        help="key of the forces in atoms.arrays (database: in data); default: ASE's",
    )
    add(
        "--units",
        choices=ENERGY_UNITS,
        default=unit,
        help=f"unit of the energies (and per A of the forces); converted to eV (default: {unit})",
    )


def add_ranks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ranks", type=int, default=1, metavar="N", help="processes on this machine, one per GPU"
    )
