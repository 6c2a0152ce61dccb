"""Errors of starting a run, and recognising errors caused by another rank's death."""

from __future__ import annotations

from fairchem_kit.errors import UserError

#: Parts of torch's and gloo's messages when the other side of a connection has died.
_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Socket closed",
    "gloo/transport",
    "is killed by signal",  # a data worker, reported by torch's DataLoader
)
_OF_TORCH = ("DistBackendError", "DistNetworkError", "DistStoreError")


class LaunchError(UserError, RuntimeError):
    """A run that cannot be started as asked; the message says why and what to do."""


class TakenError(LaunchError):
    """A run that another process is training and whose record belongs to that process."""


def lost_contact(error: BaseException) -> bool:
    """Whether ``error`` only means that another process of the run has died.

    Such a run should be started again; one with an error of its own should not.
    """
    if type(error).__name__ in _OF_TORCH:
        return True
    return isinstance(error, (RuntimeError, ConnectionError)) and any(
        words in str(error) for words in _GONE
    )


def first_line(error: BaseException) -> str:
    """``Type: message`` on one line, for a table."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else '(no message)'}"
