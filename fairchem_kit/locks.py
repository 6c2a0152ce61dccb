"""Locks between processes that the system releases when their holder ends, in whatever way."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from datetime import datetime
from pathlib import Path

# The file system has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Held(Exception):
    """Another process has the lock; the message says which, and since when."""


def take(path: Path, patience: float = 0.0) -> int | None:
    """Lock a file, which is made if there is none.

    Args:
        path: the file. patience: seconds to wait for another process.

    Returns:
        The open file, for :func:`release`; None if the file system has no locks.

    Raises:
        Held: another process has it. OSError: the file cannot be opened.
    """
    end = time.monotonic() + patience
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(file, 200, 0).decode("utf-8", "replace").strip()
            os.close(file)
            if error.errno in _NO_LOCKS:
                path.unlink(missing_ok=True)
                return None
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            if time.monotonic() >= end:
                raise Held(holder or "which just began") from None
            time.sleep(0.2)
            continue
        if _is_still(path, file):
            now = datetime.now().isoformat(sep=" ", timespec="seconds")
            os.ftruncate(file, 0)
            os.write(file, f"process {os.getpid()} on {socket.gethostname()}, {now}".encode())
            return file
        os.close(file)  # the previous holder has removed it meanwhile


def release(path: Path, file: int) -> None:
    """Remove and unlock a file that :func:`take` has locked, for forked children too."""
    path.unlink(missing_ok=True)
    fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


def _is_still(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False
