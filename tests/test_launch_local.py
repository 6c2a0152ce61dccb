"""``ndem train`` as processes: several ranks here, Ctrl-C, a killed rank, an occupied port."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from alone import TORCHS_PORT, alone
from fairchem_kit.launch import exit_codes
from launching import (
    assert_same_run,
    environment,
    finished,
    ndem,
    record,
    wait_for,
    write_config,
)
from reliability import observed

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

EPOCHS = 3
STEPS = 30  # with two ranks


@pytest.fixture(scope="module")
def config(demo_data, tmp_path_factory) -> Path:
    return write_config(tmp_path_factory.mktemp("local") / "run.yml", demo_data, EPOCHS)


def start(
    config: Path, run_dir: Path, *words: str, pause: float = 0.0, ranks: int = 2, **environ: str
):
    return ndem(
        "train", config, "--cpu", "--ranks", str(ranks), "--run-dir", run_dir, "--id", "run",
        "--print-every", "1", *words, env=environment(NDEM_TEST_STEP_S=str(pause), **environ),
    )  # fmt: skip


def under_way(process: subprocess.Popen[str], run_dir: Path, steps: int = 5) -> int:
    """The launcher's record once ``steps`` steps are done."""

    def reached() -> int:
        if process.poll() is not None:
            raise AssertionError(process.communicate()[0][-3000:])
        step = record(run_dir, "run").get("step", 0)
        return step if step >= steps else 0

    return wait_for(reached, 500)


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that the launcher started, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            environ = (folder / "environ").read_text()
        except OSError:
            continue
        place = re.search(r"NDEM_PLACE=(\d+),", environ)
        if parent == process.pid and place:
            found[int(place[1])] = int(folder.name)
    return [found[rank] for rank in sorted(found)]


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory) -> tuple[Path, str]:
    """A run with two ranks, beside another one, with torch's default ports taken."""
    folders = [tmp_path_factory.mktemp("undisturbed"), tmp_path_factory.mktemp("beside")]
    with contextlib.ExitStack() as stack:
        stack.enter_context(alone(TORCHS_PORT))
        for port in (29400, 29500, 13356):
            taken = stack.enter_context(socket.socket())
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):  # another program has it already
                taken.bind(("", port))
                taken.listen()
        both = [start(config, folder) for folder in folders]
        for process in both:
            code, out = finished(process)
            assert code == 0, out[-3000:]
    assert_same_run((folders[0], "run"), (folders[1], "run"), STEPS)
    return folders[0], "run"


def test_two_runs_at_once_keep_apart(undisturbed):
    said = record(*undisturbed)
    assert (said["state"], said["ranks"], said["step"], said["total"]) == (
        "finished",
        2,
        STEPS,
        STEPS,
    )
    assert not list((undisturbed[0] / "status").glob("*.port"))
    observed(
        "ranks",
        "two runs of two ranks at once on one machine, ports 29400, 29500 and 13356 taken",
        1,
        "both finished, with the same curve and weights",
        "nothing",
    )


def test_a_run_continues_after_ctrl_c(config, undisturbed, tmp_path):
    """With data workers, which a signal to everybody must not kill."""
    process = start(config, tmp_path, "optim.num_workers=1", pause=0.2)
    step = under_way(process, tmp_path)
    process.send_signal(signal.SIGINT)
    code, out = finished(process, 200)
    assert code == exit_codes.STOPPED, out[-3000:]
    saved = int(re.search(r"Stopped; everything up to step (\d+) is saved", out)[1])
    assert step <= saved < STEPS
    command = shlex.split(out.strip().splitlines()[-1])
    assert command[:2] == ["ndem", "train"]
    assert "--ranks" in command
    code, out = finished(ndem(*command[1:], "optim.num_workers=0"))
    assert code == 0, out[-3000:]
    assert_same_run(undisturbed, (tmp_path, "run"), STEPS)
    assert record(tmp_path, "run")["starts"] == 2
    observed(
        "ranks",
        "Ctrl-C in a local run of two ranks with data workers",
        1,
        f"stopped after step {saved}, saved; the printed command went on: curve and weights equal "
        "an undisturbed run's to the bit",
        "nothing",
    )


def test_a_second_ctrl_c_ends_at_once(config, tmp_path):
    pausing = tmp_path / "pausing"
    process = start(config, tmp_path, pause=100.0, NDEM_TEST_PAUSING=str(pausing))
    under_way(process, tmp_path, steps=1)
    wait_for(pausing.exists, 100)
    pids = ranks_of(process)
    assert len(pids) == 2
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    code, out = finished(process, 60)  # a step takes 100 s
    assert code == exit_codes.INTERRUPTED, out[-3000:]
    assert "stopped at once" in out
    assert gone(pids)


def test_a_killed_rank_ends_the_run_and_the_run_can_be_resumed(config, undisturbed, tmp_path):
    process = start(config, tmp_path, pause=0.2)
    under_way(process, tmp_path, steps=7)
    pids = ranks_of(process)
    os.kill(pids[1], signal.SIGKILL)
    code, out = finished(process, 200)
    assert code == 137, out[-3000:]
    assert gone(pids)
    assert record(tmp_path, "run")["state"] == "running"  # it did not come to say anything
    code, out = finished(start(config, tmp_path))
    assert code == 0, out[-3000:]
    assert "Continuing from step " in out
    assert_same_run(undisturbed, (tmp_path, "run"), STEPS)


def test_ranks_of_a_dead_launcher_save_and_leave(config, tmp_path):
    process = start(config, tmp_path, pause=0.2)
    step = under_way(process, tmp_path)
    pids = ranks_of(process)
    process.kill()
    process.wait()
    wait_for(lambda: gone(pids), 120, "ranks live on without their launcher")
    said = record(tmp_path, "run")
    assert (said["state"], said["reason"]) == ("stopped", "SIGTERM")
    assert said["step"] >= step


def test_a_mistake_is_one_sentence(config, tmp_path):
    process = start(config, tmp_path, "task.ndem.sigma_maximum=1")
    code, out = finished(process, 400)
    assert code == exit_codes.REFUSED, out[-3000:]
    assert "ndem: task.ndem.sigma_maximum is not a setting" in out
    assert "Traceback" not in out
    said = record(tmp_path, "run")
    assert (said["state"], said["error"].split(":")[0]) == ("failed", "SettingsError")


def test_one_process_stops_on_ctrl_c_too_and_one_run_is_trained_once(config, tmp_path):
    process = start(config, tmp_path, pause=1.0, ranks=1)  # until the other one has imported
    under_way(process, tmp_path)
    code, out = finished(start(config, tmp_path, ranks=1), 400)
    assert code == exit_codes.REFUSED, out[-3000:]
    assert "is training this run" in out
    assert record(tmp_path, "run")["state"] == "running"
    os.killpg(process.pid, signal.SIGINT)
    code, out = finished(process, 200)
    assert code == exit_codes.STOPPED, out[-3000:]
    assert "ndem train" in out.strip().splitlines()[-1]
