"""Runs started as users start them, and what can be compared of them afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from conftest import ROOT, tiny_config
from fairchem_kit.history.logger import read_history

LOGGER = "slow_history.SlowHistory"


def environment(**more: str) -> dict[str, str]:
    """For a process of its own: one thread, no W&B, a quick heartbeat, this folder's loggers."""
    names = ("SLURM", "NDEM_PLACE", "MASTER_", "TORCHELASTIC")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(names)}
    return {
        **clean,
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
        "NDEM_HEARTBEAT_S": "0.5",
        "PYTHONPATH": str(ROOT / "tests"),
        **more,
    }


def write_config(path: Path, data: Path, epochs: int, **optim: Any) -> Path:
    """A tiny run of ``20 * epochs`` steps, ``10 * epochs`` with two ranks, as a file."""
    config = tiny_config(data)
    config["optim"].update(
        batch_size=2, eval_batch_size=8, max_epochs=epochs, checkpoint_every=5, eval_every=20
    )
    config["optim"].update(optim)
    config["logger"] = {"name": LOGGER, "inner": None}
    path.write_text(yaml.safe_dump(config))
    return path


def ndem(*words: str | Path, **kwargs: Any) -> subprocess.Popen[str]:
    """``ndem`` in a process of its own; its output is in ``stdout``."""
    kwargs.setdefault("env", environment())
    return subprocess.Popen(
        [sys.executable, "-m", "ndem_ocp.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **kwargs,
    )


def finished(process: subprocess.Popen[str], limit_s: float = 900) -> tuple[int, str]:
    """Exit code and output; a process that does not end is a failure, and killed."""
    try:
        out, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        raise AssertionError(f"did not end within {limit_s} s:\n{out[-4000:]}") from None
    return process.returncode, out


def wait_for(
    condition: Callable[[], Any], limit_s: float, what: str | Callable[[], str] = "nothing came"
) -> Any:
    """The first true value of ``condition``."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.2)
    raise AssertionError(what() if callable(what) else what)


def record(run_dir: Path, run_id: str) -> dict[str, Any]:
    """What the run says of itself, {} before it says anything."""
    with contextlib.suppress(OSError):
        return json.loads((run_dir / "status" / f"{run_id}.json").read_text())
    return {}


# What no two runs share: times, and what is made of them.
CLOCKS = {"time_s", "process_s", "s_per_step", "atoms_per_s", "structures_per_s"}
CLOCKS |= {"data_share_of_time", "ndem_share_of_time", "memory_GB"}


def curve(run_dir: Path, run_id: str) -> list[dict[str, Any]]:
    """Every logged line without its times; those of nothing else are left out."""
    lines = read_history(run_dir / "logs" / LOGGER / run_id)
    kept = [{k: v for k, v in line.items() if k not in CLOCKS} for line in lines]
    return [line for line in kept if line.keys() - {"step", "split"}]


def weights(run_dir: Path, run_id: str) -> dict[str, torch.Tensor]:
    """Of the last checkpoint, with those of the moving average."""
    path = run_dir / "checkpoints" / run_id / "checkpoint.pt"
    saved = torch.load(path, map_location="cpu", weights_only=False)
    shadows = {f"ema.{i}": value for i, value in enumerate(saved["ema"]["shadow_params"])}
    return {**saved["state_dict"], **shadows}


def assert_same_run(one: tuple[Path, str], other: tuple[Path, str], steps: int) -> None:
    """Two finished runs of ``steps`` steps: the same curves and the same weights, to the bit."""
    first, second = curve(*one), curve(*other)
    logged = {line["step"] for line in first if line["split"] == "train"}
    assert logged == {*range(1, steps + 1)}
    assert len(first) == len(second)
    for left, right in zip(first, second):
        assert left == right
    saved, again = weights(*one), weights(*other)
    assert saved.keys() == again.keys()
    for name, value in saved.items():
        assert torch.equal(value, again[name]), name
