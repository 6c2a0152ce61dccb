"""Only one job at a time trains into the folder of a run.

Two jobs with one ``--timestamp-id``, for example one that was submitted again while the first is
still running, would overwrite each other's checkpoints and mix their histories.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from fairchem.core.common import distutils

from fairchem_kit.checkpoints import CheckpointError
from fairchem_kit.locks import Held, release, take

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
    lock: int | None = None
    holder: list[str | None] = [None]
    path = folder / _LOCK
    if distutils.is_master() and folder.is_dir():
        try:
            lock = take(path, PATIENCE)
        except Held as held:
            holder = [str(held)]
        except OSError as error:
            logging.warning("%s: %s; another job would not be noticed.", path, error.strerror)
    distutils.broadcast_object_list(holder, src=0, device=device)
    if holder[0] is not None:
        raise CheckpointError(
            f"{folder}: another job is training into this run ({holder[0]}). Wait for it to end, "
            "then the same command resumes the run; or give another --timestamp-id"
        )
    try:
        yield
    finally:
        if lock is not None:
            release(path, lock)
