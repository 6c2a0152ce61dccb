"""Asking a run to stop at the end of its step, from a signal handler or another thread.

A scheduler's signal arrives anywhere in a step, on one rank or on all, at different moments. So a
signal only leaves a note here; the trainer reads it once per step, together with the other ranks,
finishes the step, saves, and raises :class:`Stopped` on every rank.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from types import FrameType

_request: str | None = None


class Stopped(BaseException):
    """The run was asked to stop, has saved its state, and left training on every rank.

    Not an ``Exception``: nothing that handles a step's errors should swallow it.

    Attributes:
        reason: what asked for it. step: the last finished step.
    """

    def __init__(self, reason: str, step: int) -> None:
        super().__init__(f"stopped after step {step}: {reason}")
        self.reason = reason
        self.step = step


def request_stop(reason: str) -> None:
    """Ask the run of this process to stop at the end of its step. The first reason stays."""
    global _request
    _request = _request or reason


def stop_requested() -> str | None:
    """The reason given to :func:`request_stop`, None while nobody has asked."""
    return _request


def clear_stop() -> None:
    """Forget a request: before a new run in the same process."""
    global _request
    _request = None


def stop_on(signals: Iterable[signal.Signals]) -> None:
    """Let each of ``signals`` call :func:`request_stop` (only in the main thread of a process)."""

    def handler(number: int, frame: FrameType | None) -> None:
        request_stop(signal.Signals(number).name)

    for number in signals:
        signal.signal(number, handler)
