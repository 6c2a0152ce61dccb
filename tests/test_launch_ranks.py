"""What a rank says of itself, and how it stops, fails and leaves."""

from __future__ import annotations

import atexit
import os
import signal
import time

import pytest
import torch

from fairchem_kit.atomic_files import write_atomically
from fairchem_kit.launch import exit_codes
from fairchem_kit.launch.errors import LaunchError, first_line, lost_contact
from fairchem_kit.launch.heartbeat import Heartbeat
from fairchem_kit.launch.local import verdict
from fairchem_kit.launch.places import Place
from fairchem_kit.launch.rank import leave, with_device
from fairchem_kit.launch.record import Record, best_value, finished_id, records_below
from fairchem_kit.launch.signals import WARNINGS, stops_between_steps
from fairchem_kit.training.resume.stopping import stop_requested


def test_the_first_error_of_a_start_stays(tmp_path):
    record = Record(tmp_path, "run")
    assert record.read() == {}
    record.begin("a")
    record.update(state="running", step=3)
    record.fail("a", 1, ValueError("the cause\nand more"))
    record.fail("a", 0, RuntimeError("an echo"))
    assert record.read()["state"] == "failed"
    assert record.read()["error"] == "ValueError: the cause"
    record.begin("b")
    record.update(state="running", error=None)  # started again
    assert (record.read()["state"], record.read()["step"]) == ("running", 3)
    assert "error" not in record.read()
    assert [found.run_id for found in records_below(tmp_path)] == ["run"]
    assert not list(record.folder.glob(".*"))
    assert finished_id(tmp_path) is None
    record.update(state="finished")
    assert finished_id(tmp_path) == "run"


def test_a_truncated_status_file_is_ignored(tmp_path):
    record = Record(tmp_path, "run")
    record.update(state="running")
    record.path.write_text('{"state": "runn')
    assert record.read() == {}


def test_a_reader_sees_the_old_text_or_the_new(tmp_path):
    path = tmp_path / "folder" / "file"
    assert write_atomically(path, "old")
    with path.open() as reading:
        assert write_atomically(path, "new")
        assert reading.read() == "old"
    assert not write_atomically(path, "later", keep_first=True)
    assert path.read_text() == "new"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_errors_caused_by_a_dead_rank_are_recognised():
    gloo = RuntimeError("[../gloo/transport/tcp/pair.cc:537] Connection closed by peer [::1]:3")
    worker = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    assert lost_contact(gloo)
    assert lost_contact(worker)
    assert not lost_contact(RuntimeError("shape mismatch"))
    assert not lost_contact(ValueError("Connection closed by peer"))
    assert first_line(ValueError()) == "ValueError: (no message)"


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([0, 0], 0),
        ([75, 0], exit_codes.STOPPED),
        ([76, -9], 137),
        ([76, 1], exit_codes.ERROR),
        ([2, 76], exit_codes.REFUSED),
        ([-9, 2], exit_codes.REFUSED),
        ([0, 76], exit_codes.LOST_RANK),
        ([-11, 76], 139),
    ],
)
def test_one_code_for_all_ranks(codes, code):
    assert verdict(codes) == code


def test_a_signal_asks_for_a_stop_and_replaces_other_handlers():
    def bypass(number, frame):  # as submitit sets for SIGTERM
        raise AssertionError("swallowed")

    old = {number: signal.signal(number, bypass) for number in WARNINGS}
    try:
        with stops_between_steps(launched=True):
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop_requested() == "SIGTERM"
            os.kill(os.getpid(), signal.SIGUSR2)
            assert stop_requested() == "SIGTERM"  # the first reason stays
            child = os.fork()
            if child == 0:  # as a data worker, for which torch sets handlers of its own
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGINT)
                os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert all(signal.getsignal(number) is bypass for number in WARNINGS)
        with stops_between_steps(launched=False):
            assert stop_requested() is None  # of the run before
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class Trainer:
    """What a heartbeat looks at."""

    step, best_val_metric, primary_metric, train_loader = 7, 1e9, "forces_mae", range(10)
    config: dict = {"optim": {"max_epochs": 2.5}, "outputs": {"forces": {"level": "atom"}}}  # noqa: RUF012


def test_a_heartbeat_says_where_the_run_is(tmp_path):
    record = Record(tmp_path, "run")
    record.begin("mine")
    with Heartbeat(record, Trainer(), "mine", every_s=0.02):
        assert record.read() | {"updated": 0} == {
            "attempt": "mine", "step": 7, "total": 25, "metric": "forces_mae", "unit": "eV/A",
            "updated": 0,
        }  # fmt: skip
        Trainer.step, Trainer.best_val_metric = 8, 0.5
        until(lambda: record.read().get("step") == 8)
        assert record.read()["best"] == 0.5
        Trainer.step = 9
    assert record.read()["step"] == 9


def test_an_older_start_of_a_run_exits(tmp_path, monkeypatch):
    """As on a node that SLURM had given up, and that comes back."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    record = Record(tmp_path, "run")
    record.begin("mine")
    with Heartbeat(record, Trainer(), "mine", every_s=0.02):
        time.sleep(0.1)
        assert codes == []
        record.begin("newer")
        until(lambda: codes)
    assert set(codes) == {exit_codes.LOST_RANK}


def until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("rank", "code", "left_with"),
    [(0, 0, 0), (0, 75, 75), (1, 75, 0), (1, 76, 76), (1, 1, 1), (0, 2, 2)],
)
def test_a_rank_leaves_without_killing_rank_0(rank, code, left_with, monkeypatch):
    """srun --kill-on-bad-exit kills the others as soon as one leaves with something else than 0."""
    codes: list[int] = []
    closed: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(atexit, "_run_exitfuncs", lambda: closed.append(1))
    leave(code, Place(rank, 2, rank, 2, 1, "a", "a", True))
    assert codes == [left_with]
    assert bool(closed) == (code in (0, 75))  # a logger is closed, unless others are dead


def test_every_rank_needs_a_gpu_of_its_own(monkeypatch):
    place = Place(3, 4, 3, 4, 1, "a", "a", True)
    seen = {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen["gpus"])
    for gpus, local_rank in ((4, 3), (8, 3), (1, 0)):  # 1: srun shows each rank its own
        seen["gpus"] = gpus
        assert with_device(place).local_rank == local_rank
    for gpus, advice in ((0, "add --cpu"), (2, "as many ranks as there are GPUs")):
        seen["gpus"] = gpus
        with pytest.raises(LaunchError, match=advice):
            with_device(place)


def test_best_values():
    assert best_value(0.5) == 0.5
    assert [best_value(value) for value in (None, 1e9, -1.0, float("inf"))] == [None] * 4
