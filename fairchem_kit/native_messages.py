"""Lines that libraries write to stderr from C, past ``sys.stderr``, ``warnings`` and logging."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def without_lines(unwanted: Callable[[str], bool]) -> Iterator[None]:
    """Context in which lines on the process's stderr are held back; at the end those that are
    wanted are written.

    For short calls such as an import. Where stderr is closed or no file can be made, all lines are
    shown at once.

    Args:
        unwanted: whether to drop a line.
    """
    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(tempfile.TemporaryFile())
            stderr = os.dup(2)
        except OSError:
            yield
            return
        _flush()
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            _flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held.read().decode(errors="replace").splitlines():
                if not unwanted(line):
                    print(line, file=sys.stderr, flush=True)


def _flush() -> None:
    if sys.stderr is not None:
        sys.stderr.flush()
