"""What every error of this package has in common."""

from __future__ import annotations


class NDeMError(Exception):
    """Something that a user can put right; the message says what, where, and what to do.

    Every error class of the package is one, beside a built-in class such as ``ValueError``:
    ``except ndem_ocp.NDeMError`` catches them all. The commands print the message without a
    traceback and end with exit status 2 (:mod:`ndem_ocp.commands.ending`).

    This module imports nothing, so that ``ndem_ocp.method`` can use it and stay with torch alone.
    """
