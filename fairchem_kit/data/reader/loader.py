"""Options of a torch DataLoader with worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from typing import Any

import torch

from fairchem_kit.data.errors import DataError


def loader_options(num_workers: int, start_method: str | None = None) -> dict[str, Any]:
    """Further keyword arguments of ``torch.utils.data.DataLoader``.

    Args:
        num_workers: as given to the DataLoader; 0 gives no options.
        start_method: ``fork`` (the default if available: a worker starts at once and shares the
            memory of the data set's indices), ``forkserver`` or ``spawn`` (a worker imports torch
            and fairchem again, ten seconds, so workers are kept).

    Raises:
        DataError: a start method that is not available on this system.
    """
    if num_workers <= 0:
        return {}
    methods = multiprocessing.get_all_start_methods()
    method = start_method or ("fork" if "fork" in methods else methods[0])
    if method not in methods:
        raise DataError(
            f"data workers can start with {', '.join(methods)} on this system, not with {method!r}"
        )
    return {
        "multiprocessing_context": method,
        "worker_init_fn": start_worker,
        "persistent_workers": method != "fork",
    }


def start_worker(number: int) -> None:
    """Set up a data worker: one thread, and no reaction to signals that stop a run.

    A scheduler signals all processes of a job, and a forked worker inherits the handlers of its
    parent. A worker that exits on a signal would end the main process in the middle of a step, so
    workers ignore signals. They exit when the main process asks them to or has died; only a SIGTERM
    from the main process counts.
    """
    torch.set_num_threads(1)
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        # blocked before the thread starts, so that all later threads inherit it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_sigterm, args=(os.getppid(),), daemon=True).start()


def _wait_for_sigterm(parent: int) -> None:
    while True:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == parent:
            os._exit(0)
