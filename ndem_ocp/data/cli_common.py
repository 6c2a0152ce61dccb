"""What the commands of ``ndem data`` share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from .errors import DataError


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add --workers and --no-progress."""
    parser.add_argument(
        "--workers",
        type=int,
        default=min(4, os.cpu_count() or 1),
        metavar="N",
        help="processes (default: %(default)s); the result does not depend on it",
    )
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")


def guarded(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Print bad input as a message instead of a traceback."""

    def run_guarded(args: argparse.Namespace) -> int:
        try:
            if args.workers < 1:
                raise DataError("--workers must be at least 1")
            return run(args)
        except DataError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted; nothing was left behind", file=sys.stderr)
            return 130

    return run_guarded
