"""Errors of the data tools. Their messages name the file and the record and say what to do."""

from __future__ import annotations

from fairchem_kit.errors import UserError


class DataError(UserError, ValueError):
    """Bad input or bad data; the command line prints the message without a traceback."""


class FrameError(ValueError):
    """A frame or file cannot be used. The message is only the reason, without file and frame."""


def not_read(error: Exception) -> str:
    """Why a frame or file cannot be read; errors of other libraries with their kind."""
    if isinstance(error, FrameError):
        return f"cannot be read: {error}"
    return f"cannot be read ({type(error).__name__}: {error})"


class Stopped(RuntimeError):
    """A worker process stopped because its parent asked it to."""
