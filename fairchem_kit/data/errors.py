"""Errors of the data tools. Their messages name the file and the record and say what to do."""

from __future__ import annotations

from fairchem_kit.errors import UserError


class DataError(UserError, ValueError):
    """Bad input or bad data; the command line prints the message without a traceback."""


class FrameError(ValueError):
    """A frame or file cannot be used. The message is only the reason, without file and frame."""


class Stopped(RuntimeError):
    """A worker process stopped because its parent asked it to."""
