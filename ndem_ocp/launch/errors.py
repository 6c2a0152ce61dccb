"""Errors of starting a run, and which errors are only the echo of another rank's death."""

from __future__ import annotations

from ndem_ocp.errors import NDeMError

#: What torch's and gloo's messages hold when the other side of a connection is gone.
_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Socket closed",
    "gloo/transport",
    "is killed by signal",  # a data worker, named by torch's DataLoader
)
_OF_TORCH = ("DistBackendError", "DistNetworkError", "DistStoreError")


class LaunchError(NDeMError, RuntimeError):
    """A run that cannot be started as asked; the message says why and what to do."""


class TakenError(LaunchError):
    """A run that another process is training: its record is that process's."""


def lost_contact(error: BaseException) -> bool:
    """Whether ``error`` says that another process of the run is gone, and nothing about this one.

    Such a run is worth starting again; one with an error of its own is not.
    """
    if type(error).__name__ in _OF_TORCH:
        return True
    return isinstance(error, (RuntimeError, ConnectionError)) and any(
        words in str(error) for words in _GONE
    )


def first_line(error: BaseException) -> str:
    """``Type: message`` in one line, for a table."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else '(no message)'}"
