"""Damaged and hostile input by the thousand: no crash, no hang, nothing but the reader's own error.

The loops run in processes of their own, with a time limit and faulthandler, so that a crash is seen
as one. ``NDEM_FUZZ_LAST=FILE`` keeps the record that is being read, to look at it afterwards.
"""

from __future__ import annotations

import copyreg
import faulthandler
import io
import itertools
import json
import multiprocessing
import os
import pickle
import pickletools
import random
import resource
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from torch_geometric.data import Data

from fairchem_kit.data.reader.checks import check_fields
from fairchem_kit.data.reader.errors import Refused
from fairchem_kit.data.reader.keys import map_keys
from fairchem_kit.data.reader.pages import LmdbFile
from fairchem_kit.data.reader.settings import ReaderSettings
from fairchem_kit.data.reader.unpickle import load_fields
from reliability import observed, soak

SLOWEST = 2.0  # s of processor time for one record or file: other programs do not stretch it
HUNG = soak(7000, 590)  # s for a whole loop
LAST = os.environ.get("NDEM_FUZZ_LAST")  # a file to keep the record in that is being read


def sound_record(rng: random.Random, atoms: int) -> Data:
    """A record with tensors, arrays, numbers and text."""
    grid = torch.tensor([[i % 4, i // 4 % 4, i // 16] for i in range(atoms)], dtype=torch.float32)
    fields: dict[str, Any] = {
        "y": rng.uniform(-500, 0),
        "force": torch.rand(atoms, 3),
        "pos": 2.5 * grid,
        "cell": 10 * torch.eye(3).view(1, 3, 3),
        "atomic_numbers": torch.randint(1, 80, (atoms,)),
        "natoms": atoms,
        "fixed": torch.zeros(atoms, dtype=torch.long),
        "sid": rng.randrange(10**6),
    }
    if rng.random() < 0.5:
        fields["stress"] = np.zeros((3, 3))
        fields["y_relaxed"] = np.float64(-1.5)
        fields["name"] = "random123"
    return Data(**fields)


def old_layout(data: Data) -> Data:
    """The same record as torch_geometric 1.x pickled it."""
    old = Data.__new__(Data)
    for key in ("x", "edge_index"):
        old.__dict__[key] = None
    old.__dict__.update(data.to_dict())
    return old


def pickled(data: Data, protocol: int) -> bytes:
    if "_store" in data.__dict__:
        return pickle.dumps(data, protocol=protocol)
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=protocol)
    # torch_geometric 2 would write its own state; 1.x left it to Python
    if protocol >= 2:
        how = lambda d: (copyreg.__newobj__, (Data,), d.__dict__)  # noqa: E731
    else:
        how = lambda d: (copyreg._reconstructor, (Data, object, None), d.__dict__)  # noqa: E731
    pickler.dispatch_table = {Data: how}
    pickler.dump(data)
    return buffer.getvalue()


def operations(raw: bytes) -> list[bytes]:
    """The operations of a pickle, arguments included."""
    places = [position for _, _, position in pickletools.genops(raw)] + [len(raw)]
    return [raw[a:b] for a, b in itertools.pairwise(places)]


def mutate(raw: bytes, other: bytes, rng: random.Random) -> bytes:
    """One damaged version of a record."""
    kind = rng.randrange(6)
    if kind == 0:  # flipped bits
        data = bytearray(raw)
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(data)
    if kind == 1:  # the end is missing
        return raw[: rng.randrange(len(raw))]
    if kind == 2:  # a piece of another record
        start, length = rng.randrange(len(raw)), rng.randrange(1, 200)
        place = rng.randrange(len(other))
        piece = other[place : place + length]
        return raw[:start] + piece + raw[start + rng.choice((0, length)) :]
    if kind == 3:  # bytes in the head, where the names and lengths are
        data = bytearray(raw)
        for _ in range(rng.choice((1, 3))):
            data[rng.randrange(min(400, len(data)))] = rng.randrange(256)
        return bytes(data)
    parts = operations(raw)
    if kind == 4:  # operations moved, doubled, left out, or taken from the other record
        strange = operations(other)
        for _ in range(rng.choice((1, 2, 5))):
            place = rng.randrange(len(parts) - 1)
            action = rng.randrange(4)
            if action == 0:
                parts.insert(place, parts[rng.randrange(len(parts))])
            elif action == 1:
                del parts[place]
            elif action == 2:
                parts[place] = strange[rng.randrange(len(strange))]
            else:
                parts.insert(
                    place, bytes([rng.choice(b"(012NRQbesudlat])}\x81\x85\x86\x87\x90\x91")])
                )
        return b"".join(parts)
    places = [i for i, part in enumerate(parts) if len(part) > 1]  # arguments
    for _ in range(rng.choice((1, 2))):
        place = rng.choice(places)
        part = bytearray(parts[place])
        part[rng.randrange(1, min(10, len(part)))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        parts[place] = bytes(part)
    return b"".join(parts)


def fuzz_records(count: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    sources = []
    for atoms in (1, 5, 40):
        data = sound_record(rng, atoms)
        for protocol in range(6):
            sources += [pickled(data, protocol), pickled(old_layout(data), protocol)]
    settings = ReaderSettings()
    for raw in sources:  # all of them are good before they are damaged
        assert load_fields(raw).keys() >= {"pos", "y", "natoms"}
    outcome: Counter[str] = Counter()
    slowest = 0.0
    for _ in range(count):
        raw = mutate(rng.choice(sources), rng.choice(sources), rng)
        if LAST:
            Path(LAST).write_bytes(raw)
        started = time.process_time()
        try:
            fields = load_fields(raw)
            check_fields(fields, settings)
            data = Data()
            for key, value in fields.items():
                data[key] = value
            outcome["good"] += 1
        except Refused as error:
            outcome[f"refused: {error.kind}"] += 1
        slowest = max(slowest, time.process_time() - started)
    return {"outcome": outcome, "slowest": slowest}


def fuzz_files(count: int, seed: int, source: str) -> dict[str, Any]:
    """Damage whole files; each goes through the reader, and through liblmdb in a child."""
    rng = random.Random(seed)
    whole = Path(source).read_bytes()
    path = Path(source).with_suffix(".damaged")
    outcome: Counter[str] = Counter()
    liblmdb: Counter[str] = Counter()
    slowest = 0.0
    for _ in range(count):
        path.write_bytes(damage(whole, rng))
        started = time.process_time()
        outcome[read_file(path)] += 1
        slowest = max(slowest, time.process_time() - started)
        liblmdb[read_in_child(path)] += 1
    return {"outcome": outcome, "slowest": slowest, "liblmdb": liblmdb}


def damage(whole: bytes, rng: random.Random) -> bytes:
    data = bytearray(whole)
    kind = rng.randrange(5)
    if kind == 0:  # cut off anywhere
        return bytes(data[: rng.randrange(len(data))])
    if kind == 1:  # the two meta pages
        for _ in range(rng.choice((1, 4))):
            data[rng.choice((0, 4096)) + rng.randrange(160)] = rng.randrange(256)
    elif kind == 2:  # the heads and pointers of pages, in pages of the tree mostly
        for _ in range(rng.choice((1, 4, 16))):
            page = rng.randrange(2, len(data) // 4096)
            data[page * 4096 + rng.randrange(64)] = rng.randrange(256)
    elif kind == 3:  # a page in another's place
        first, second = (4096 * rng.randrange(2, len(data) // 4096) for _ in "12")
        data[first : first + 4096] = data[second : second + 4096]
    else:  # bits anywhere, as a bad disk has them
        for _ in range(rng.choice((1, 16, 256))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def read_file(path: Path) -> str:
    """Every record of a file, as the data set reads them."""
    settings = ReaderSettings()
    try:
        with LmdbFile(path) as file:
            keys = map_keys(file)
            list(file)
            bad = bool(keys.problems)
            for number in range(keys.count):
                try:
                    check_fields(load_fields(file.get(b"%d" % number)), settings)
                except Refused:
                    bad = True
    except Refused:
        return "the file refused"
    return "some records refused" if bad else "all records good"


def read_in_child(path: Path) -> str:
    """The same with liblmdb, without unpickling, in a child that may die."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CPU, (2, 2))  # s; going round and round ends here
        try:
            env = lmdb.open(str(path), subdir=False, readonly=True, lock=False)
            with env, env.begin() as transaction:
                for key, value in transaction.cursor():
                    transaction.get(key)
                    len(bytes(value))
        except BaseException:
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
                return "hung"
            if os.WIFSIGNALED(status):
                return f"killed by signal {os.WTERMSIG(status)}"
            return "read" if status == 0 else "an exception"
        time.sleep(0.001)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "hung"


def child(job: Callable[..., dict[str, Any]], arguments: tuple[Any, ...], out: Path) -> None:
    """Run a loop and leave its result in ``out``."""
    with out.with_suffix(".trace").open("w") as trace:
        faulthandler.enable(trace)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = job(*arguments)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        out.write_text(json.dumps({**result, "grown_mb": (after - before) / 1024}))
        faulthandler.disable()


def fuzz(job: Callable[..., dict[str, Any]], *arguments: Any, limit: float) -> dict[str, Any]:
    """Run a loop in a process of its own, with a time limit; a crash there is a failure here."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        process = multiprocessing.get_context("fork").Process(
            target=child, args=(job, arguments, out)
        )
        process.start()
        process.join(limit)
        hung = process.is_alive()
        process.kill()
        process.join()
        assert not hung, f"no end after {limit} s"
        assert process.exitcode == 0, out.with_suffix(".trace").read_text()
        result: dict[str, Any] = json.loads(out.read_text())
        return result


def test_mutated_records():
    count, seeds = soak(20000, 4000), soak(10, 1)
    total: Counter[str] = Counter()
    slowest = 0.0
    for seed in range(seeds):
        result = fuzz(fuzz_records, count, seed, limit=HUNG)
        total.update(result["outcome"])
        slowest = max(slowest, result["slowest"])
        assert result["grown_mb"] < 300
    assert total.total() == count * seeds
    assert total["good"] > 0.01 * count
    assert total["refused: pickle"] > 0.5 * count
    assert slowest < SLOWEST
    refused = total.total() - total["good"]
    observed(
        "data",
        "records with flipped bits, cut off, spliced, with operations of the pickle changed",
        total.total(),
        f"no crash, no hang (slowest {1000 * slowest:.0f} ms); {refused} refused by name, "
        f"{total['good']} still sound records",
        "the refused records",
    )


def test_mutated_files(demo_data, tmp_path):
    count = soak(2000, 40)
    source = tmp_path / "whole.lmdb"
    source.write_bytes((demo_data / "val_id" / "data.0000.lmdb").read_bytes())
    result = fuzz(fuzz_files, count, 1, str(source), limit=HUNG)
    assert result["slowest"] < SLOWEST
    ours = result["outcome"]
    assert sum(ours.values()) == count
    assert ours["the file refused"] > 0.1 * count
    theirs = result["liblmdb"].items()
    killed = sum(n for what, n in theirs if what.startswith(("killed", "hung")))
    assert killed > 0  # the same damage is deadly elsewhere
    observed(
        "data",
        "LMDB files cut off, with damaged meta pages, pages and bits",
        count,
        f"no crash, no hang: {ours['the file refused']} files refused, "
        f"{ours.get('some records refused', 0)} with some records refused, "
        f"{ours.get('all records good', 0)} without a fault that can be seen; liblmdb "
        f"ended the process on {killed} of the same files",
        "the refused records",
    )
