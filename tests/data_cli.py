"""``ndem data ...`` in this process."""

from __future__ import annotations

from collections.abc import Sequence

from ndem_ocp import cli


def main(arguments: Sequence[str]) -> int:
    """The exit status of ``ndem data ARGUMENTS``."""
    return cli.main(["data", *arguments])
