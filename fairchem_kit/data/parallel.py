"""Running tasks in worker processes with a progress bar, and stopping them cleanly."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from fairchem_kit.progress import bar as progress_bar

from .errors import DataError, Stopped

_LOOK_EVERY = 0.5  # s; how often a worker checks whether its parent is alive
_stop: Any = None
INTERRUPTED = threading.Event()  # set by the signal handler of terminate_as_interrupt


def raise_if_interrupted() -> None:
    """Raise KeyboardInterrupt if a signal asked for it, even if its own exception was lost."""
    if INTERRUPTED.is_set():
        raise KeyboardInterrupt


def _start_worker(stop: Any, parent: int) -> None:
    """Leave Ctrl-C to the parent, which then sets ``stop`` for all workers; end if the parent
    dies."""
    global _stop
    gc.freeze()  # what the parent left belongs to threads that do not run here: collecting it hangs
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process soon after its parent, even if the parent was killed."""
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY)
    os._exit(1)


def check_stop() -> None:
    """Raise ``Stopped`` in a worker whose parent is shutting down. Called once per frame."""
    if _stop is not None and _stop.is_set():
        raise Stopped("stopped by the parent process")


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one torch thread for a task; restored afterwards, as it may run in the caller's
    process."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A process pool whose running tasks end soon after an exception in the parent."""
    # fork starts at once; otherwise every worker imports torch and fairchem again (seconds)
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(stop, os.getpid())
    )
    try:
        yield pool
    except BaseException:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown(wait=True)


def run_tasks(
    func: Callable[[Any], Any],
    tasks: Sequence[Any],
    *,
    workers: int = 1,
    describe: str = "",
    unit: str = "frame",
    size: Callable[[Any], int] = lambda task: 1,
    progress: bool = True,
    crashed: Callable[[Any], Any] | None = None,
) -> list[Any]:
    """Return ``[func(task) for task in tasks]``, computed by ``workers`` processes.

    Args:
        func: importable function of one picklable task.
        tasks: the tasks; results are in the same order.
        workers: number of processes; 1 runs in this process.
        describe, unit, size: label, unit and advance per task of the progress bar.
        progress: show it on stderr.
        crashed: gives the result of a task that killed its worker process. If given, tasks always
            run in a worker process, so that this process survives.

    Raises:
        DataError: a worker process died and ``crashed`` was not given.
    """
    results: dict[int, Any] = {}
    with progress_bar(
        total=sum(size(task) for task in tasks), desc=describe, unit=unit, show=progress
    ) as bar:

        def done(index: int, result: Any) -> None:
            raise_if_interrupted()
            results[index] = result
            bar.update(size(tasks[index]))

        if workers <= 1 and crashed is None:
            for index, task in enumerate(tasks):
                done(index, func(task))
        elif tasks:
            _run_in_pool(func, tasks, workers, done)
            _run_one_by_one(func, tasks, results, done, crashed)
    return [results[index] for index in range(len(tasks))]


def _run_in_pool(
    func: Callable[[Any], Any],
    tasks: Sequence[Any],
    workers: int,
    done: Callable[[int, Any], None],
) -> None:
    """Run all tasks; returns early, with some not done, if a worker process dies."""
    with _pool(max(1, min(workers, len(tasks)))) as pool:
        futures = {}
        try:
            for index, task in enumerate(tasks):
                futures[pool.submit(func, task)] = index
            for future in as_completed(futures):
                done(futures[future], future.result())
        except BrokenProcessPool:
            return


def _run_one_by_one(
    func: Callable[[Any], Any],
    tasks: Sequence[Any],
    results: dict[int, Any],
    done: Callable[[int, Any], None],
    crashed: Callable[[Any], Any] | None,
) -> None:
    """Finish the tasks left by a dead worker, each in its own process."""
    for index, task in enumerate(tasks):
        if index in results:
            continue
        if crashed is None:
            raise DataError(
                "a worker process died (out of memory, or killed); try again with --workers 1"
            )
        try:
            with _pool(1) as pool:
                result = pool.submit(func, task).result()
        except BrokenProcessPool:
            result = crashed(task)
        done(index, result)
