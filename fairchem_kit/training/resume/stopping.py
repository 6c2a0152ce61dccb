"""Request a run to stop at the end of its step, from a signal handler or another thread.

The signal of a job scheduler can arrive anywhere in a step, on one rank or on all, at different
times. So a signal handler only sets a request here. The trainer checks it once per step, together
with all other ranks, finishes the step, saves, and raises :class:`Stopped` on every rank.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from types import FrameType

_request: str | None = None


class Stopped(BaseException):
    """The run was requested to stop, has saved its state, and has left training on every rank.

    Not an ``Exception``, so that error handlers do not catch it.

    Attributes:
        reason: why it was requested. step: the last finished step.
    """

    def __init__(self, reason: str, step: int) -> None:
        super().__init__(f"stopped after step {step}: {reason}")
        self.reason = reason
        self.step = step


def request_stop(reason: str) -> None:
    """Request the run of this process to stop at the end of its step. The first reason counts."""
    global _request
    _request = _request or reason


def stop_requested() -> str | None:
    """The reason given to :func:`request_stop`; None if there is no request."""
    return _request


def clear_stop() -> None:
    """Clear a request, before a new run in the same process."""
    global _request
    _request = None


def stop_on(signals: Iterable[signal.Signals]) -> None:
    """Call :func:`request_stop` on each of ``signals`` (only in a process's main thread)."""

    def handler(number: int, frame: FrameType | None) -> None:
        request_stop(signal.Signals(number).name)

    for number in signals:
        signal.signal(number, handler)
