"""Two writers of one data set, writers that were killed, and disks that take nothing more."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import lmdb
import numpy as np
import pytest

import data_cli as cli
from fairchem_kit.data import staging
from fairchem_kit.data.errors import DataError
from fairchem_kit.data.lock import only_writer
from fairchem_kit.data.reader import LmdbReader, RecordError
from test_data_support import records, run, trajectories

__all__ = ["trajectories"]  # a fixture


def is_alive(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rsplit(")")[-1].split()[0]
    except OSError:
        return False
    return state != "Z"


# another process that writes a data set until it is told to end
HOLDER = """
import sys
from pathlib import Path
from fairchem_kit.data.lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("writing", flush=True)
    sys.stdin.readline()
"""


def test_a_second_writer_is_refused(tmp_path, trajectories):
    out = tmp_path / "out"
    command = [sys.executable, "-c", HOLDER, str(out)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as holder:
        assert holder.stdout.readline() == "writing\n"
        for options in ({"split": "val"}, {"overwrite": True}):
            with pytest.raises(DataError, match=f"being written by .*process {holder.pid} on "):
                run(trajectories[1:2], out, **options)
        assert not out.exists()
        holder.communicate("end\n")
    run(trajectories[:1], out, split="train")
    run(trajectories[1:2], out, split="val")
    systems = json.loads((out / "systems.json").read_text())
    assert {name: entry["sid"] for name, entry in systems.items()} == {"system0": 0, "system1": 1}
    assert len(json.loads((out / "dataset.json").read_text())["conversions"]) == 2
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


# a conversion whose two workers never end
ENDLESS = """
import os, sys, time
from pathlib import Path
from fairchem_kit.data.lock import only_writer
from fairchem_kit.data.parallel import run_tasks
from fairchem_kit.data.staging import staging
def work(task):
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(600)
out = Path(sys.argv[1])
with only_writer(out), staging(out, None) as folder:
    (folder / "train").mkdir()
    run_tasks(work, [0, 1], workers=2, progress=False)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_workers_end_with_their_parent_and_the_next_run_removes_what_is_dead(
    tmp_path, trajectories, capsys
):
    out = tmp_path / "new" / "out"
    command = [sys.executable, "-c", ENDLESS, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        workers = [int(process.stdout.readline()) for _ in range(2)]
        left = out.with_name(f"out.partial-{process.pid}")
        assert all(map(is_alive, workers))
        assert left.is_dir()
        process.kill()
        process.wait()
        end = time.monotonic() + 20
        while any(map(is_alive, workers)):
            assert time.monotonic() < end
            time.sleep(0.1)
    run(trajectories[:2], out)
    assert f"removed {left}, which a killed conversion left" in capsys.readouterr().err
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_what_a_killed_writer_was_replacing_is_put_back(tmp_path, trajectories, capsys):
    out = tmp_path / "out"
    run(trajectories[:1], out, split="train")
    run(trajectories[1:2], out, split="val")
    before = records(out / "val")[0]
    (out / "val").rename(out / "val.replaced-7")
    out.rename(tmp_path / "out.replaced-77")
    (tmp_path / "out.replaced-77" / "dataset.json.partial-7").write_text("{")
    (tmp_path / "outer.partial-7").mkdir()
    with only_writer(out):
        pass
    assert "put back" in capsys.readouterr().err
    with only_writer(out):
        pass
    assert sorted(p.name for p in out.iterdir()) == [
        "dataset.json", "systems.json", "train", "val",
    ]  # fmt: skip
    assert (tmp_path / "outer.partial-7").is_dir()
    assert np.array_equal(records(out / "val")[0]["pos"], before["pos"])


def test_without_locks_a_target_that_came_into_being_is_not_replaced(tmp_path):
    out = tmp_path / "out"

    def conversion(split: str | None) -> None:
        with staging.staging(out, split) as folder:
            (folder / "train").mkdir()
            other = out if split is None else out / split  # made by another process
            other.mkdir(parents=True)
            (other / "data.0000.lmdb").write_text("theirs")

    for split, file in ((None, "data.0000.lmdb"), ("val", "val/data.0000.lmdb")):
        with pytest.raises(DataError, match="made or replaced by another conversion"):
            conversion(split)
        assert (out / file).read_text() == "theirs"
        assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_a_file_system_without_locks_is_used_without_them(tmp_path, trajectories, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "out.partial-1").mkdir()  # of somebody who may be alive
    run(trajectories[:1], tmp_path / "out")
    left = {p.name for p in tmp_path.iterdir()} - {p.name for p in trajectories}
    assert left == {"out", "out.partial-1"}


def test_a_data_set_that_is_replaced_while_it_is_read_is_named(tmp_path, trajectories):
    out = tmp_path / "out"
    run(trajectories[:2], out, frames_per_shard=5)
    dataset = LmdbReader({"src": str(out / "train"), "on_bad_record": "skip"})
    first = dataset[0]
    run(trajectories[2:], out, frames_per_shard=5, overwrite=True)
    assert np.array_equal(dataset[0].pos, first.pos)  # the file that is open stays
    with pytest.raises(RecordError, match=r"data\.0001\.lmdb: the file was replaced or changed"):
        dataset[7]


def test_an_unwritable_place_is_one_sentence(tmp_path, trajectories, capsys, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    arguments = ["--no-progress", "--workers", "1"]
    for command in (
        ["ase", str(trajectories[0])],
        ["demo", "--size", "small"],
        ["is2re", str(trajectories[0])],
        ["demo-relaxations", "--systems", "1"],
    ):
        assert cli.main([*command, "--out", str(file / "out"), *arguments]) == 2
        message = capsys.readouterr().err
        assert "cannot be written: File exists" in message
        assert len(message.splitlines()) == 1


def test_a_full_disk_leaves_nothing_and_is_one_sentence(tmp_path, trajectories, monkeypatch):
    """The system's own error in each place that writes."""

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    for place in ("fairchem_kit.data.writer.write_json", "fairchem_kit.data.lmdb_writer.np.savez"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            with pytest.raises(DataError, match="No space left on device"):
                run(trajectories[:1], tmp_path / "new" / "out")
        assert sorted(p.name for p in tmp_path.iterdir()) == [p.name for p in trajectories]


def test_a_disk_that_lmdb_cannot_write_to_is_named(tmp_path, trajectories, monkeypatch):
    def full(*args, **kwargs):
        raise lmdb.Error("mdb_txn_commit: Input/output error")

    monkeypatch.setattr(lmdb, "open", full)
    with pytest.raises(DataError, match=r"data\.0000\.lmdb: cannot be written .*MB are free there"):
        run(trajectories[:1], tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == [p.name for p in trajectories]


def test_check_names_a_place_where_its_json_cannot_be(tmp_path, trajectories, capsys, monkeypatch):
    run(trajectories[:1], tmp_path / "out")
    common = ["check", str(tmp_path / "out"), "--no-progress", "--workers", "1"]
    target = tmp_path / "there"
    target.mkdir()
    assert cli.main([*common, "--json", str(target)]) == 2
    assert "was not written: Is a directory" in capsys.readouterr().err
    assert not [p.name for p in tmp_path.iterdir() if "partial" in p.name]
    monkeypatch.setattr(os, "access", lambda *args: False)
    assert cli.main([*common, "--json", str(tmp_path / "check.json")]) == 2
    assert "its folder cannot be written to" in capsys.readouterr().err
