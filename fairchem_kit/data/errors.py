"""Errors of the data tools. Their messages name the file and the record and say what to do."""

from __future__ import annotations

import gzip
import lzma
import zlib

from fairchem_kit.errors import UserError
from fairchem_kit.files import reason_of

#: end of a message about a file that ends too early
CUT_OFF = (
    "the file is probably cut off (an unfinished copy, a full disk, a program that is still "
    "writing): copy it again"
)


class DataError(UserError, ValueError):
    """Bad input or bad data; the command line prints the message without a traceback."""


class FrameError(ValueError):
    """A frame or file cannot be used. The message is only the reason, without file and frame."""


def not_read(error: Exception) -> str:
    """Why a frame or file cannot be read; errors of other libraries with their kind."""
    if isinstance(error, FrameError):
        return f"cannot be read: {error}"
    reason = reason_of(error) if isinstance(error, OSError) else None
    if reason:
        return f"cannot be read: {reason}"
    if isinstance(error, (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)):
        return f"cannot be read: its compressed data are incomplete or damaged; {CUT_OFF}"
    return f"cannot be read ({type(error).__name__}: {error})"


class Stopped(RuntimeError):
    """A worker process stopped because its parent asked it to."""
