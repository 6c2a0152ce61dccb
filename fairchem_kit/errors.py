"""The base class of this package's errors."""

from __future__ import annotations


class UserError(Exception):
    """An error that the user can fix; the message says what is wrong, where, and what to do.

    Every error of both packages that reaches a user derives from it and from a built-in class such
    as ``ValueError``; ``except ndem_ocp.NDeMError``, the same class, catches them all. The commands
    print the message
    without a traceback and exit with status 2 (:mod:`fairchem_kit.commands.ending`).

    This module imports nothing, so that ``ndem_ocp.method``, which only needs torch, can use it.
    """


class ConfigError(UserError, ValueError):
    """A configuration that cannot train; the message names the key and what to do."""
