"""The ``ndem`` command."""

from __future__ import annotations

import sys

from fairchem_kit.commands import ending
from fairchem_kit.files import check_name
from ndem_ocp.commands.parser import UsageError, build_parser

__all__ = ["build_parser", "main"]


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status (:mod:`fairchem_kit.commands.ending`)."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return ending.run(lambda: _run(given))


def _run(given: list[str]) -> int:
    for word in given:
        check_name(word, UsageError)
    parser = build_parser(given)
    # argparse would take what follows -- for a missing positional argument
    head, overrides = given, []
    if "--" in given:
        head, overrides = given[: given.index("--")], given[given.index("--") + 1 :]
    args, unknown = parser.parse_known_args(head)
    below = getattr(args, f"{args.command}_command", None)
    name = " ".join(filter(None, ["ndem", args.command, below]))
    args.given = given  # for commands that start themselves in several processes
    if unknown and not hasattr(args, "unknown"):
        raise UsageError(f"{name} has no argument {unknown[0]} (see {name} --help)")
    if unknown:
        args.unknown = unknown
    if overrides and not hasattr(args, "overrides"):
        raise UsageError(f"{name} takes nothing after -- (see {name} --help)")
    if overrides:
        args.overrides = overrides
    return int(args.func(args) or 0)


if __name__ == "__main__":
    sys.exit(main())
