"""Small runs that are stopped, killed and resumed; each in a forked process, one per rank.

Forked, not started: everything is imported once, so a run of eighteen steps takes a second or two.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import multiprocessing
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from fairchem.core.common import distutils

from conftest import TINY_BACKBONE, tiny_config, trainer_of
from fairchem_kit.checkpoints import read_checkpoint
from fairchem_kit.history.logger import FILE_NAME, read_history
from fairchem_kit.training.resume.stopping import Stopped
from grids import make_grids

RUN = "run"
STEPS = 18  # three epochs of six steps, the last one of an epoch uneven
FORK = multiprocessing.get_context("fork")
Edit = Callable[[dict[str, Any]], None]


def short_run(data: Path, edit: Edit | None = None, **ndem: Any) -> dict[str, Any]:
    """A configuration whose steps draw random numbers everywhere: noise, dropped atoms and paths,
    random edge frames; validation and checkpoints fall on different steps."""
    config = tiny_config(data, **ndem)
    config["model"]["backbone"].update(drop_path_rate=0.1, alpha_drop=0.1)
    config["dataset"]["train"]["train_split_settings"] = {"first_n": 22}
    config["dataset"]["val"]["val_split_settings"] = {"first_n": 8}
    config["optim"].update(
        batch_size=4, eval_batch_size=4, max_epochs=3, eval_every=5, checkpoint_every=4
    )
    if edit is not None:
        edit(config)
    return config


def train(config: dict[str, Any], run_dir: Path, hook: Callable[[Any], None] | None = None) -> Any:
    """Train in this process as ``fairchem --timestamp-id run`` does; returns the trainer."""
    trainer = trainer_of(config, run_dir, run_id=RUN)
    if hook is not None:
        hook(trainer)
    trainer.train(disable_eval_tqdm=True)
    return trainer


def launch(
    config: dict[str, Any],
    run_dir: Path,
    ranks: int = 1,
    hook: Callable[[Any], None] | None = None,
) -> list[Any]:
    """Start a run on forked ranks; ``hook(trainer)`` is called on each before it trains."""
    make_grids(*TINY_BACKBONE["lmax_list"], TINY_BACKBONE["grid_resolution"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        FORK.Process(target=_rank, args=(rank, ranks, port, config, run_dir, hook))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return processes


def _rank(rank: int, ranks: int, port: int, config: dict, run_dir: Path, hook: Any) -> None:
    gc.freeze()  # what the parent left belongs to threads that do not run here: collecting it hangs
    torch.set_num_threads(1)
    stacks = (run_dir / f"stacks-{rank}.txt").open("w")
    faulthandler.register(signal.SIGUSR1, stacks)
    try:
        if ranks > 1:
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            dist.init_process_group("gloo", rank=rank, world_size=ranks)
        train(config, run_dir, hook)
        status = 0
    except Stopped:
        status = 3
    except BaseException:
        (run_dir / f"error-{rank}.txt").write_text(traceback.format_exc())
        status = 1
    if ranks > 1 and status in (0, 3):
        distutils.synchronize()
        dist.destroy_process_group()
    os._exit(status)  # no exit handlers of the process that was forked


def finish(processes: list[Any], run_dir: Path, seconds: float = 400) -> int:
    """Wait for all ranks; the exit status that they share. A negative one is a signal."""
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.1, until - time.monotonic()))
        if process.exitcode is None:
            for each in processes:
                os.kill(each.pid, signal.SIGUSR1)
            time.sleep(1)
            kill(processes)
            stacks = "\n".join(path.read_text() for path in sorted(run_dir.glob("stacks-*.txt")))
            raise AssertionError(f"a run in {run_dir} did not end in {seconds} s:\n{stacks}")
    status = {process.exitcode for process in processes}
    errors = "".join(path.read_text() for path in run_dir.glob("error-*.txt"))
    assert len(status) == 1, f"{[process.exitcode for process in processes]} {errors}"
    assert status != {1}, errors
    return status.pop()


def kill(processes: list[Any]) -> None:
    """kill -9 to every rank."""
    for process in processes:
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.join()


def run_to_end(config: dict[str, Any], run_dir: Path, ranks: int = 1) -> dict[str, Any]:
    """Train to the end in forked ranks; returns what the run left."""
    run_dir.mkdir(parents=True, exist_ok=True)
    assert finish(launch(config, run_dir, ranks), run_dir) == 0
    return result(run_dir)


def result(run_dir: Path) -> dict[str, Any]:
    """Newest and best checkpoint and history of a run."""
    folder = run_dir / "checkpoints" / RUN
    logs = run_dir / "logs" / "ndem_ocp.HistoryLogger" / RUN / FILE_NAME
    best = folder / "best_checkpoint.pt"
    return {
        "newest": read_checkpoint(folder / "checkpoint.pt"),
        "best": read_checkpoint(best) if best.exists() else None,
        "history": read_history(logs),
        "index": json.loads((folder / "checkpoints.json").read_text()),
    }


def differences(a: Any, b: Any, name: str = "") -> list[str]:
    """Where two trees of tensors and values are not equal to the bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and torch.equal(a, b)
        return [] if same else [name]
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{name}: keys {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [d for key in a for d in differences(a[key], b[key], f"{name}.{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return [f"{name}: lengths {len(a)}, {len(b)}"]
        return [d for i, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f"{name}.{i}")]
    return [] if a == b else [f"{name}: {a!r}, {b!r}"]


def same_run(interrupted: dict[str, Any], whole: dict[str, Any]) -> list[str]:
    """Differences between two runs: weights, optimizer, schedule, EMA, generators, curves."""
    a, b = without_places(interrupted), without_places(whole)
    return differences(a, b)


def without_places(run: dict[str, Any]) -> dict[str, Any]:
    """A run's result without what must differ: its folder, its times."""
    times = ("time_s", "process_s")
    history = [{k: v for k, v in line.items() if k not in times} for line in run["history"]]
    files = {
        name: {key: value for key, value in (run[name] or {}).items() if key != "config"}
        for name in ("newest", "best")
    }
    return {**files, "history": history}
