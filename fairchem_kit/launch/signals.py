"""Stopping on signals: a run stops between two steps, never within one.

SLURM sends SIGUSR2 (time limit), SIGTERM (preemption, requeue, scancel) or the signal set by
--signal; a terminal sends SIGINT, and SIGHUP when it closes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from types import FrameType

from fairchem_kit.launch.exit_codes import INTERRUPTED
from fairchem_kit.training.resume.stopping import clear_stop, request_stop, stop_on, stop_requested

WARNINGS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
ALL = (*WARNINGS, signal.SIGHUP, signal.SIGINT)
CTRL_C = "Ctrl-C"
FIRST_INTERRUPT = (
    b"\nndem: stopping after this step, which will be saved. Ctrl-C again stops at once.\n"
)
_guarding_workers = False


@contextlib.contextmanager
def stops_between_steps(launched: bool) -> Iterator[None]:
    """Context in which signals request the run of this process to stop; handlers are restored at
    the end.

    submitit installs handlers that ignore SIGTERM, so use this after submitit.

    Args:
        launched: whether a launcher watches this process and handles a second Ctrl-C.
    """
    global _guarding_workers
    clear_stop()
    before = {number: signal.getsignal(number) for number in ALL}
    stop_on(WARNINGS)
    if before[signal.SIGHUP] is not signal.SIG_IGN:  # nohup ignores it
        stop_on([signal.SIGHUP])
    signal.signal(signal.SIGINT, _note_interrupt if launched else _interrupt)
    _guarding_workers = True
    # the local launcher starts ranks with blocked signals
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ALL)
    try:
        yield
    finally:
        _guarding_workers = False
        for number, handler in before.items():
            signal.signal(number, handler)


def default_signals() -> None:
    """Restore the default effect of signals, for a trainer that cannot stop between steps."""
    for number in (*WARNINGS, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _note_interrupt(number: int, frame: FrameType | None) -> None:
    request_stop(CTRL_C)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if stop_requested() == CTRL_C:
        say(b"\nndem: stopped at once.\n")
        os._exit(INTERRUPTED)
    request_stop(CTRL_C)
    say(FIRST_INTERRUPT)


def say(text: bytes) -> None:
    """Write to stderr from a signal handler."""
    with contextlib.suppress(OSError):
        os.write(2, text)


def _keep_from_workers() -> None:
    """Make data workers ignore signals to the process group, so that the current step can
    finish."""
    if _guarding_workers:
        signal.pthread_sigmask(signal.SIG_BLOCK, ALL)


os.register_at_fork(after_in_child=_keep_from_workers)


def stop_with_parent() -> None:
    """Ask the system to send SIGTERM to this process when its launcher dies (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)  # 1: PR_SET_PDEATHSIG
