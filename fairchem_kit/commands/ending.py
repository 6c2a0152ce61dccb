"""How a command ends: its exit status, and an error as one sentence on stderr.

=====  ======================================================================================
0      done
1      done, but problems were found (``ndem data check``, ``doctor``, ...); or an
       unexpected error, with its traceback
2      refused: bad input, a bad command line, a disk that is full or read-only
130    interrupted by Ctrl-C
141    the reader of the output has closed it (``ndem ... | head``)
=====  ======================================================================================

``ndem train`` has more (:mod:`fairchem_kit.launch.exit_codes`). With NDEM_TRACEBACK=1 in the
environment, status 2 also prints the traceback, before the message.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import traceback
from collections.abc import Callable

from fairchem_kit.errors import UserError
from fairchem_kit.files import reason_of

TRACEBACK = "NDEM_TRACEBACK"
DONE, PROBLEMS, REFUSED, INTERRUPTED, OUTPUT_CLOSED = 0, 1, 2, 130, 141


def run(command: Callable[[], int | None]) -> int:
    """Call ``command``; returns its exit status, or prints its error and returns the error's."""
    try:
        try:
            code = int(command() or 0)
        except SystemExit:  # of --help
            _flush()
            raise
        _flush()  # now, and not when the interpreter exits: the reader may have closed the pipe
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
    """The message to print instead of a traceback; None for errors that need the traceback."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ImportError):
        package = (error.name or "").partition(".")[0]
        if package in ("", "ndem_ocp", "fairchem_kit"):  # a bug here
            return None
        from fairchem_kit.hosts import host, wrong_host  # only now: it costs a start some time

        if package == "fairchem" and host() == 2:  # a module that only 1.10 has
            return str(wrong_host(1, "this command"))
        return (
            f"the Python package {package} is missing or has the wrong version "
            f"({error}). `ndem doctor` shows what is installed; docs/install.md says what to do."
        )
    return _about_files(error) if isinstance(error, OSError) else None


def refuse(sentence: str) -> int:
    """Print why a command was refused; returns its exit status."""
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
    """Whether it is stdout whose other end is closed, and not another pipe."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # no real file
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _flush() -> None:
    """Flush stdout; an error that is raised names it."""
    try:
        sys.stdout.flush()
    except OSError as error:
        error.filename = "standard output"
        if not isinstance(error, BrokenPipeError):
            _let_output_go()
        raise


def _let_output_go() -> None:
    """Discard what is still in the buffer, so that the interpreter exits without an error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
