"""Data workers: why fairchem's data set crashes in them, and the reader under fork and spawn."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fairchem.core.common.data_parallel import BalancedBatchSampler
from fairchem.core.datasets import create_dataset, data_list_collater
from torch.utils.data import DataLoader

from fairchem_kit import plugins
from fairchem_kit.data.errors import DataError
from fairchem_kit.data.reader import RecordError, loader_options
from reliability import observed, soak
from test_data_support import record, write_split

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
COLLATE = partial(data_list_collater, otf_graph=True)
KEYS = {"y": "energy", "force": "forces"}


def dataset_of(source, **extra):
    plugins.register()  # also in processes that the tests start
    config = {"src": str(source), "format": "ndem_lmdb", "key_mapping": KEYS, **extra}
    return create_dataset(config, "train")


def loader(dataset, workers, method=None, **options):
    options = {"batch_size": 4, **options, **loader_options(workers, method)}
    return DataLoader(dataset, collate_fn=COLLATE, num_workers=workers, **options)


def same(first, second) -> bool:
    keys = list(first.keys())
    return keys == list(second.keys()) and all(
        torch.equal(first[k], second[k]) if torch.is_tensor(first[k]) else first[k] == second[k]
        for k in keys
    )


@pytest.mark.parametrize(
    ("method", "workers"),
    [
        ("fork", 1),
        ("fork", 2),
        ("fork", 4),
        pytest.param("spawn", 1, marks=pytest.mark.slow),
        pytest.param("spawn", 4, marks=pytest.mark.slow),
        pytest.param("forkserver", 2, marks=pytest.mark.slow),
    ],
)
def test_workers_give_the_same_batches(demo_data, method, workers):
    dataset = dataset_of(demo_data / "train")
    expected = list(loader(dataset, 0))  # the files are open in this process before the fork
    batches = loader(dataset, workers, method)
    epochs = soak(10, 2)
    for _ in range(epochs):
        found = list(batches)
        assert len(found) == len(expected)
        assert all(same(a, b) for a, b in zip(found, expected, strict=True))
    observed(
        "data",
        f"data workers ({workers}, {method})",
        epochs * len(expected),
        "the batches of num_workers 0, to the bit",
        "nothing",
    )


@pytest.mark.skipif(
    not __import__("lmdb").__version__.startswith(("1.7", "1.8")), reason="a fault of lmdb 1.7, 1.8"
)
def test_why_fairchems_data_set_dies_in_workers(demo_data):
    """An environment opened before the fork, read after it, writes into freed memory; without
    torch, torch_geometric and fairchem."""
    code = """
import os, sys, lmdb
env = lmdb.open(sys.argv[1], subdir=False, readonly=True, lock=False, max_readers=1)
def read():
    for i in range(1000):
        env.begin().get(b"0")
        others = [bytes([65]) * (lmdb.Transaction.__basicsize__ - 33) for _ in range(200)]
        env.begin().get(b"1")
        if any(other.count(b"A") != len(other) for other in others):
            os._exit(7)
read()
child = os.fork()
if child == 0:
    read()
    os._exit(0)
status = os.waitpid(child, 0)[1]
print("signal", os.WTERMSIG(status)) if os.WIFSIGNALED(status) else print("exit", status >> 8)
"""
    path = str(demo_data / "train" / "data.0000.lmdb")
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() in ("signal 11", "signal 7", "signal 6", "exit 7")


def test_an_error_in_a_worker_keeps_its_words(tmp_path):
    split = write_split(tmp_path / "split", record(), record(y=float("nan")))
    with pytest.raises(RecordError, match=r"data\.0000\.lmdb: record 1: 1 NaN or inf in `y`"):
        list(loader(dataset_of(split, no_shuffle=True), 1))


def test_skipped_records_in_workers(tmp_path):
    items = [record(fid=i, y=float("nan") if i in (2, 5) else 0.0) for i in range(12)]
    split = write_split(tmp_path / "split", *items)
    log = tmp_path / "bad.jsonl"
    dataset = dataset_of(split, on_bad_record="skip", bad_records_log=str(log), no_shuffle=True)
    fids = [batch.fid.tolist() for batch in loader(dataset, 2)]
    assert fids == [[0, 1, 3, 3], [4, 6, 6, 7], [8, 9, 10, 11]]
    assert len(log.read_text().splitlines()) == 2


def test_signals_of_the_scheduler_are_left_to_the_main_process(demo_data):
    batches = loader(dataset_of(demo_data / "train"), 2, batch_size=1, prefetch_factor=1)
    iterator = iter(batches)
    for _ in range(2):
        next(iterator)  # one of each worker: both have begun
    workers = [worker.pid for worker in iterator._workers]
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"):
        for pid in workers:  # from another process, as a scheduler does
            subprocess.run(["kill", f"-{name[3:]}", str(pid)], check=True)
    assert len(list(iterator)) == len(batches) - 2
    iterator = iter(batches)
    for _ in range(2):
        next(iterator)
    (first, *_) = processes = list(iterator._workers)
    first.terminate()  # of its own main process it takes it
    first.join(60)
    assert first.exitcode == 0
    del iterator
    gc.collect()
    for worker in processes:
        worker.join(60)
        assert worker.exitcode is not None


def alive(pid: int) -> bool:
    """Not gone, and not dead and waiting for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_workers_end_with_the_main_process(demo_data, tmp_path):
    code = f"""
import os, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
import conftest, test_reader_workers as t
iterator = iter(t.loader(t.dataset_of({str(demo_data / "train")!r}), 2))
next(iterator)
print(*[w.pid for w in iterator._workers], flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and any(alive(pid) for pid in pids):
        time.sleep(0.2)
    assert not any(alive(pid) for pid in pids)


def test_options():
    assert loader_options(0) == {}
    assert loader_options(2, "spawn")["persistent_workers"] is True
    assert loader_options(2, "fork")["persistent_workers"] is False
    with pytest.raises(DataError, match="not with 'thread'"):
        loader_options(1, "thread")


def two_ranks(rank: int, source: str, port: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    dataset = dataset_of(source)
    found = []
    for workers in (0, 2):
        sampler = BalancedBatchSampler(
            dataset, batch_size=3, num_replicas=2, rank=rank, device=torch.device("cpu"), seed=0
        )
        batches = DataLoader(
            dataset,
            collate_fn=COLLATE,
            num_workers=workers,
            batch_sampler=sampler,
            **loader_options(workers),
        )
        for _ in range(2):
            found.append([b.pos.sum().item() for b in batches])
    dist.barrier()
    dist.destroy_process_group()
    torch.save(found, f"{out}/{rank}.pt")


@pytest.mark.ddp
@pytest.mark.slow
def test_two_ranks_with_workers(demo_data, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(two_ranks, (str(demo_data / "train"), port, str(tmp_path)), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found[0] == found[1] == found[2] == found[3]
        assert len(found[0]) == 7
    observed(
        "data", "two ranks, two data workers each", 4, "the batches of num_workers 0", "nothing"
    )
