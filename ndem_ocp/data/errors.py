"""Errors of the data tools. Their messages name the file and the record, and a way out."""

from __future__ import annotations

from ndem_ocp.errors import NDeMError


class DataError(NDeMError, ValueError):
    """Bad input or bad data; the command line prints the message without a traceback."""


class FrameError(ValueError):
    """A frame or a file cannot be used. The message is the reason alone, without file and frame."""


class Stopped(RuntimeError):
    """A worker process gave up because the parent asked it to."""
