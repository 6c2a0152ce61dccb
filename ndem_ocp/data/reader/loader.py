"""Options of a torch DataLoader with worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from typing import Any

import torch

from ndem_ocp.data.errors import DataError


def loader_options(num_workers: int, start_method: str | None = None) -> dict[str, Any]:
    """Further keyword arguments of ``torch.utils.data.DataLoader``.

    Args:
        num_workers: as given to the DataLoader; 0 gives no options.
        start_method: ``fork`` (the default if available: a worker starts at once and shares the
            memory of the data set's indices), ``forkserver`` or ``spawn`` (a worker imports torch
            and fairchem again, ten seconds, so workers are kept).

    Raises:
        DataError: a start method that this system does not have.
    """
    if num_workers <= 0:
        return {}
    methods = multiprocessing.get_all_start_methods()
    method = start_method or ("fork" if "fork" in methods else methods[0])
    if method not in methods:
        raise DataError(f"data workers start by {', '.join(methods)} here, not by {method!r}")
    return {
        "multiprocessing_context": method,
        "worker_init_fn": start_worker,
        "persistent_workers": method != "fork",
    }


def start_worker(number: int) -> None:
    """First thing in a data worker: one thread, and no part in the signals that stop a run.

    A scheduler signals all processes of a job, and a forked worker inherits the handlers of its
    parent. A worker that ends, or that takes the signal for itself, would end the main process in
    the middle of a step; so workers leave signals to it. They end when it asks them to, or when it
    is gone. The one SIGTERM that counts is that of the main process.
    """
    torch.set_num_threads(1)
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        # blocked before the thread starts: whatever thread there is later inherits it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_sigterm, args=(os.getppid(),), daemon=True).start()


def _wait_for_sigterm(parent: int) -> None:
    while True:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == parent:
            os._exit(0)
