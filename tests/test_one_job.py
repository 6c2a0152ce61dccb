"""Two jobs that train into one run: the second is refused, and nothing of the first is lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest
import torch

from fairchem_kit import locks
from fairchem_kit.checkpoints import CheckpointError
from fairchem_kit.training import one_job
from fairchem_kit.training.one_job import only_job
from resuming import RUN, run_to_end, short_run

CPU = torch.device("cpu")
FORK = multiprocessing.get_context("fork")


def hold(folder, ready, with_worker=False):
    """A job that trains until it is killed, with a data worker that lives a little longer."""
    with only_job(folder, CPU):
        if with_worker:
            FORK.Process(target=time.sleep, args=(1.5,)).start()
        ready.set()
        time.sleep(600)


@pytest.fixture
def other_job(tmp_path):
    """Starts another job in tmp_path."""
    jobs = []

    def start(**options):
        ready = FORK.Event()
        jobs.append(FORK.Process(target=hold, args=(tmp_path, ready), kwargs=options))
        jobs[-1].start()
        assert ready.wait(60)
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()
        job.join()


def test_a_second_job_is_refused(tmp_path, other_job, monkeypatch):
    monkeypatch.setattr(one_job, "PATIENCE", 0.3)
    job = other_job()
    with (
        pytest.raises(CheckpointError, match=rf"is training into this run \(process {job.pid} on"),
        only_job(tmp_path, CPU),
    ):
        pytest.fail("two jobs at once")
    job.kill()
    job.join()
    with only_job(tmp_path, CPU):
        assert os.listdir(tmp_path) == [".training.lock"]
    assert os.listdir(tmp_path) == []


def test_the_workers_of_a_killed_job_are_waited_for(tmp_path, other_job):
    job = other_job(with_worker=True)
    os.kill(job.pid, signal.SIGKILL)
    job.join()
    started = time.monotonic()
    with only_job(tmp_path, CPU):
        assert time.monotonic() - started < one_job.PATIENCE


def test_a_folder_without_locks_or_none_at_all(tmp_path, monkeypatch, caplog):
    with only_job(tmp_path / "absent", CPU):
        assert not (tmp_path / "absent").exists()

    def no_locks(file, what):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    with only_job(tmp_path, CPU):
        pass
    monkeypatch.setattr(one_job, "_LOCK", "no/such/folder")
    with only_job(tmp_path, CPU):
        assert "another job would not be noticed" in caplog.text


def test_a_trainer_takes_the_lock_of_its_run(demo_data, tmp_path, monkeypatch):
    monkeypatch.setattr(one_job, "PATIENCE", 0.0)
    checkpoints = tmp_path / "checkpoints" / RUN
    checkpoints.mkdir(parents=True)
    with (
        only_job(checkpoints, CPU),
        pytest.raises(AssertionError, match=r"CheckpointError.*give another --timestamp-id"),
    ):
        run_to_end(short_run(demo_data), tmp_path)
    assert not (checkpoints / "checkpoint.pt").exists()
    run_to_end(short_run(demo_data), tmp_path)
    assert ".training.lock" not in os.listdir(checkpoints)
