"""Errors of checkpoint files."""

from __future__ import annotations

from pathlib import Path

from fairchem_kit.errors import UserError


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be written, read or used; the message names the file and what to
    do."""


class UnsafeError(CheckpointError):
    """A checkpoint with more than numbers and text, which was not read.

    Attributes:
        path: of the file. what: the names of the Python objects in it.
    """

    def __init__(self, path: str | Path, what: str, opt_in: str | None = None) -> None:
        self.path, self.what = Path(path), what
        opt_in = opt_in or (
            "--unsafe for a command, task.unsafe: True in a configuration, unsafe=True in Python"
        )
        super().__init__(
            f"{path} was not read: it contains more than weights and plain values ({what}), and "
            f"reading that can run any code that its author put there. If you trust the author: "
            f"{opt_in}."
        )
