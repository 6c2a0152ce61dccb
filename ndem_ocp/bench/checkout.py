"""The checkout that ndem_ocp.bench.experiments, .pages and .gpu read from and write to.

They need the configurations, tests, pages and results of the repository, which an installation
from a wheel does not have. ``python -m`` in a checkout takes the code of that checkout.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def in_checkout(main: Callable[[], int | None], root: Path = ROOT) -> int:
    """Run ``main`` for its exit status; outside a checkout, say so: status 2."""
    if not all((root / name).is_dir() for name in ("configs", "docs", "results")):
        print(
            f"This reads and writes files of the ndem_ocp repository, and {root} holds only the "
            "installed package: run the same `python -m` line in the folder of a git clone.",
            file=sys.stderr,
        )
        return 2
    return main() or 0
