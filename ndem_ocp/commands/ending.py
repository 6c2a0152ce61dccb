"""How a command ends: its exit status, and an error as one sentence on stderr.

=====  ======================================================================================
0      done
1      done, and what was looked at has problems (``ndem data check``, ``doctor``, ...); or an
       error that nobody foresaw, with its traceback
2      could not be done: bad input, a bad command line, a disk that is full or read-only
130    interrupted by Ctrl-C
141    whoever read the output has closed it (``ndem ... | head``)
=====  ======================================================================================

``ndem train`` has more (:mod:`ndem_ocp.launch.exit_codes`).
"""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Callable

from ndem_ocp.errors import NDeMError

DONE, PROBLEMS, REFUSED, INTERRUPTED, OUTPUT_CLOSED = 0, 1, 2, 130, 141

# What a user can put right. A connection that is lost, say, is an error like any other.
_OF_FILES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.ENOENT: "no such file or directory",
    errno.ENOTDIR: "a part of this path is a file, not a directory",
    errno.EISDIR: "this is a directory, and a file is needed",
    errno.EEXIST: "this exists already",
    errno.ELOOP: "a symbolic link that leads back to itself",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EIO: "the disk cannot be read or written",
    errno.EFBIG: "the file would be too large",
    errno.EMFILE: "too many files are open",
    errno.ENOTEMPTY: "the directory is not empty",
    errno.EBUSY: "in use",
    errno.ETXTBSY: "in use",
    errno.ESTALE: "the network file system has lost this file",
}


def run(command: Callable[[], int | None]) -> int:
    """Call ``command``; its exit status, or that of its error, which is printed."""
    try:
        try:
            code = int(command() or 0)
        except SystemExit:  # of --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # here, and not when the interpreter ends: the reader may be gone
        return code
    except KeyboardInterrupt:
        return _say("interrupted.", INTERRUPTED)
    except NDeMError as error:
        return _say(str(error))
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "ndem_ocp"):  # a fault of ours
            raise
        return _say(
            f"the Python package {package} is missing, or is not a version that this needs "
            f"({error}). `ndem doctor` says what is installed, docs/install.md what to do."
        )
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            _let_output_go()
            return OUTPUT_CLOSED
        sentence = sentence_of(error)
        if sentence is None:
            raise
        if error.filename is None and not _output_takes_more():
            _let_output_go()
            sentence = f"standard output: {sentence}"
        return _say(f"{sentence}.")


def sentence_of(error: OSError) -> str | None:
    """``PATH: what is wrong``, for errors that a user can put right; None for others."""
    what = _OF_FILES.get(error.errno or 0)
    if what is None:
        return None
    names = [
        os.fsdecode(n) for n in (error.filename, error.filename2) if isinstance(n, str | bytes)
    ]
    return f"{' -> '.join(names)}: {what}" if names else what


def _say(message: str, code: int = REFUSED) -> int:
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


def _output_takes_more() -> bool:
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


def _let_output_go() -> None:
    """Send what is still in the buffer nowhere, so that the interpreter ends in silence."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
