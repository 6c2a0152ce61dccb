"""How a command ends: its exit status, and an error as one sentence on stderr.

=====  ======================================================================================
0      done
1      done, and what was looked at has problems (``ndem data check``, ``doctor``, ...); or an
       error that nobody foresaw, with its traceback
2      could not be done: bad input, a bad command line, a disk that is full or read-only
130    interrupted by Ctrl-C
141    whoever read the output has closed it (``ndem ... | head``)
=====  ======================================================================================

``ndem train`` has more (:mod:`ndem_ocp.launch.exit_codes`). With NDEM_TRACEBACK=1 in the
environment the traceback of a refusal is printed before its sentence.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import traceback
from collections.abc import Callable

from ndem_ocp.errors import NDeMError
from ndem_ocp.files import reason_of

TRACEBACK = "NDEM_TRACEBACK"
DONE, PROBLEMS, REFUSED, INTERRUPTED, OUTPUT_CLOSED = 0, 1, 2, 130, 141


def run(command: Callable[[], int | None]) -> int:
    """Call ``command``; its exit status, or that of its error, which is printed."""
    try:
        try:
            code = int(command() or 0)
        except SystemExit:  # of --help
            _flush()
            raise
        _flush()  # here, and not when the interpreter ends: the reader may be gone
        return code
    except KeyboardInterrupt:
        return _say("interrupted.", INTERRUPTED)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            _let_output_go()
            return OUTPUT_CLOSED
        sentence = explained(error)
        if sentence is None:
            raise
        with contextlib.suppress(OSError):
            _flush()
        return refuse(sentence)


def explained(error: Exception) -> str | None:
    """What a user is told about an error instead of a traceback; None for one that needs it."""
    if isinstance(error, NDeMError):
        return str(error)
    if isinstance(error, ImportError):
        package = (error.name or "").partition(".")[0]
        if package in ("", "ndem_ocp"):  # a fault of ours
            return None
        return (
            f"the Python package {package} is missing, or is not a version that this needs "
            f"({error}). `ndem doctor` says what is installed, docs/install.md what to do."
        )
    return _about_files(error) if isinstance(error, OSError) else None


def refuse(sentence: str) -> int:
    """Print why a command could not be done; its exit status."""
    return _say(sentence)


def _about_files(error: OSError) -> str | None:
    """``PATH: what is wrong``; None if nothing is wrong with a file."""
    what = reason_of(error)
    if what is None:
        return None
    names = [
        os.fsdecode(n) for n in (error.filename, error.filename2) if isinstance(n, str | bytes)
    ]
    where = " -> ".join(names) or "standard output, or a file that is not named"
    return f"{where}: {what}."


def _say(message: str, code: int = REFUSED) -> int:
    if os.environ.get(TRACEBACK) and code == REFUSED:
        traceback.print_exc()
    print(f"ndem: {message}", file=sys.stderr, flush=True)
    return code


def _nobody_reads() -> bool:
    """Whether the other end of stdout is closed, and not some other pipe."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # no real file
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _flush() -> None:
    """Write what is in the buffer of stdout, with its name in the error if it cannot be."""
    try:
        sys.stdout.flush()
    except OSError as error:
        error.filename = "standard output"
        if not isinstance(error, BrokenPipeError):
            _let_output_go()
        raise


def _let_output_go() -> None:
    """Send what is still in the buffer nowhere, so that the interpreter ends in silence."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
