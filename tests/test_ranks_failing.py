"""Two ranks under the stock command end together, whatever happens to one of them."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lmdb
import pytest

from conftest import tiny_config, trainer_of
from fairchem_kit.history.logger import find_history, read_history
from ndem_ocp.models.equiformer_names import to_upstream
from ranks import EXACT
from ranks_command import FINISHED, OWN_NETWORK, Command
from reliability import observed, soak, time_is_over

SOAKING = 4 * 3600  # seconds for all runs of a test
pytestmark = [pytest.mark.ddp, pytest.mark.slow, pytest.mark.timeout(SOAKING)]

START = 1200  # seconds for a command to its first steps or its end; a quiet machine needs 20
SOON = 240  # seconds for the other rank and the command to end; a quiet machine needs 5
AT_ONCE = soak(6, 1) if OWN_NETWORK else 1  # runs of a loop
HISTORY = "logs/*/*/history.jsonl"


@pytest.fixture
def config(demo_data: Path) -> dict[str, Any]:
    config = tiny_config(demo_data)
    config["optim"].update(num_workers=0)
    return config


def loop(run: Callable[[int], float | str], times: int) -> list[float | str]:
    """``run(0)``, ``run(1)``, ..., some at once, the first ones whatever the time."""

    def in_time(number: int) -> float | str | None:
        return run(number) if number < AT_ONCE or not time_is_over() else None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [found for found in pool.map(in_time, range(times)) if found is not None]


def test_a_killed_rank_ends_the_run(config, tmp_path):
    """The rank that is left waits in an all-reduce; the launcher must not leave it there."""
    config["optim"]["max_epochs"] = 1000

    def run(number: int) -> float:
        with Command(config, tmp_path / f"run{number}", 2) as command:
            command.wait_for(HISTORY, 2, START)
            ranks = command.ranks()
            assert len(ranks) == 2
            killed = time.monotonic()
            os.kill(ranks[1 - number % 2], signal.SIGKILL)
            status = command.ended(SOON)
            seconds = time.monotonic() - killed
            assert status not in (None, 0), command.output[-4000:]
            assert "SIGKILL" in command.output
            assert FINISHED not in command.output
            assert not [pid for pid in command.left() if pid in ranks]
        return seconds

    seconds = loop(run, soak(10, 1))
    observed(
        "ranks",
        "kill -9 of one of two ranks (stock command)",
        len(seconds),
        f"the other rank and the command ended with an error after at most {max(seconds):.1f} s",
        "the steps since the last checkpoint",
    )


def test_an_error_on_one_rank_ends_the_run_and_is_shown(config, demo_data, tmp_path):
    data = tmp_path / "train"
    shutil.copytree(demo_data / "train", data)
    (file,) = data.glob("*.lmdb")
    with lmdb.open(str(file), subdir=False, lock=False) as env, env.begin(write=True) as write:
        assert write.replace(b"7", b"no record")
    config["dataset"]["train"]["src"] = str(data)
    with Command(config, tmp_path / "run", 2) as command:
        status = command.ended(START)
        assert status not in (None, 0), command.output[-4000:]
        assert "Traceback (most recent call last)" in command.output
        assert "Error" in command.output.split("Traceback (most recent call last)")[-1]
        assert FINISHED not in command.output
    observed(
        "ranks",
        "a record that cannot be read, on one of two ranks",
        1,
        "all ranks ended with an error, whose traceback is shown",
        "the steps since the last checkpoint",
    )


def test_graph_parallelism_is_refused_on_every_rank(config, tmp_path):
    with Command(config, tmp_path / "run", 2, "--gp-gpus", "2") as command:
        status = command.ended(START)
        assert status not in (None, 0), command.output[-4000:]
        assert "NDeM does not run with graph parallelism (--gp-gpus)" in command.output
        assert not list(command.run_dir.rglob("*.pt"))
        assert not command.ranks()
    observed(
        "ranks",
        "--gp-gpus with NDeM, two ranks",
        1,
        "refused with a sentence before anything is built; both ranks ended",
        "nothing",
    )


def test_graph_parallelism_without_ndem_trains_as_fairchem_does(config, tmp_path):
    """Two ranks that share every structure have the losses of one process.

    The norm of the gradient is half of it: DDP takes the mean of two ranks' parts of a sum. That
    is fairchem's, with its own trainers too; Adam hides it, clip_grad_norm does not.
    """
    config["task"]["ndem"]["coefficient"] = 0
    config["model"] = to_upstream(config["model"])  # ours refuses: tests/test_equiformer.py
    config["model"]["backbone"].update(EXACT)
    config["dataset"]["train"]["first_n"] = 10  # three steps
    trainer_of(config, tmp_path / "one").train(disable_eval_tqdm=True)
    with Command(config, tmp_path / "two", 2, "--gp-gpus", "2", "--print-every", "1000") as command:
        assert command.ended(START) == 0, command.output[-4000:]
    one, two = (read_history(find_history(tmp_path / name), "train") for name in ("one", "two"))
    losses, expected = ([r["loss"] for r in records if "loss" in r] for records in (two, one))
    assert len(expected) == 3
    assert losses == pytest.approx(expected, rel=1e-3)
    norms, expected = ([r["grad_norm"] for r in h if "grad_norm" in r] for h in (two, one))
    assert norms[0] == pytest.approx(expected[0] / 2, rel=1e-3)
    observed(
        "ranks",
        "--gp-gpus with task.ndem.coefficient 0, two ranks",
        1,
        "trains as fairchem's own trainer does: one process's losses, half its gradient norm",
        "nothing",
    )


def test_a_finished_run_exits(config, tmp_path):
    """The same short run, again and again, until its processes are gone."""

    def run(number: int) -> float | str:
        with Command(config, tmp_path / f"run{number}", 2) as command:
            status = command.ended_after(FINISHED, START, SOON)
            if status is None:
                return command.stacks()[-4000:]
            assert status == 0, command.output[-4000:]
            assert not command.ranks()
            seconds = time.time() - command.log.stat().st_mtime
        shutil.rmtree(command.run_dir)
        return seconds

    found = loop(run, soak(50, 1))
    hung = [where for where in found if isinstance(where, str)]
    assert not hung, f"{len(hung)} of {len(found)}: {hung[0]}"
    observed(
        "ranks",
        "two-rank runs to their end (stock command)",
        len(found),
        f"all exited, at most {max(found):.0f} s after their last line",
        "nothing",
    )
