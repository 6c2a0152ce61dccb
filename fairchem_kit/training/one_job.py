"""Only one job at a time trains into the folder of a run.

Two jobs with one ``--timestamp-id``, for example one that was submitted again while the first is
still running, would overwrite each other's checkpoints and mix their histories.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import torch
from fairchem.core.common import distutils

from fairchem_kit.checkpoints import CheckpointError

_LOCK = ".training.lock"
#: Seconds to wait: data workers of a killed job keep its lock until they notice.
PATIENCE = 20.0


@contextmanager
def only_job(folder: Path, device: torch.device) -> Iterator[None]:
    """Keep other jobs from training into ``folder`` while the block runs; every rank calls this.

    The system releases the lock when rank 0 ends, in whatever way. Where the file system has no
    locks, or the folder does not exist (``--debug``), nothing is locked.

    Args:
        folder: with the run's checkpoints. device: of this rank.

    Raises:
        CheckpointError: on every rank, if another job is training there.
    """
    held: int | None = None
    holder: list[str | None] = [None]
    if distutils.is_master() and folder.is_dir():
        held, holder[0] = _take(folder / _LOCK)
    distutils.broadcast_object_list(holder, src=0, device=device)
    if holder[0] is not None:
        raise CheckpointError(
            f"{folder}: another job is training into this run ({holder[0]}). Wait for it to end, "
            "then the same command resumes the run; or give another --timestamp-id"
        )
    try:
        yield
    finally:
        if held is not None:
            (folder / _LOCK).unlink(missing_ok=True)
            fcntl.flock(held, fcntl.LOCK_UN)  # also for workers that have inherited it
            os.close(held)


def _take(path: Path) -> tuple[int | None, str | None]:
    """The locked file, None if it cannot be locked; and who holds it, None if nobody does."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            logging.warning("%s: %s; another job would not be noticed.", path, error.strerror)
            return None, None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.stat(path), os.fstat(file)):
                now = datetime.now().isoformat(sep=" ", timespec="seconds")
                os.ftruncate(file, 0)
                who = f"process {os.getpid()} on {socket.gethostname()}, since {now}"
                os.pwrite(file, who.encode(), 0)
                return file, None
        except FileNotFoundError:  # the holder has just removed it
            pass
        except BlockingIOError:
            if time.monotonic() > end:
                who = os.pread(file, 200, 0).decode("utf-8", "replace").strip()
                os.close(file)
                return None, who or "which has just begun"
            time.sleep(0.2)
        except OSError:  # the file system has no locks
            os.close(file)
            return None, None
        os.close(file)
