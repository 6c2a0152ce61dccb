"""Checks and statistics of LMDB data sets."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch

import data_cli as cli
from fairchem_kit.data.check import check_dataset
from fairchem_kit.data.errors import DataError
from fairchem_kit.data.record_check import close_pair
from fairchem_kit.data.statistics import dataset_statistics
from test_data_support import demo, record, write_split

__all__ = ["demo"]  # a fixture


def check(path: Path, **options):
    (report,) = check_dataset(path, progress=False, isolate=False, **options)
    return report


@pytest.mark.parametrize(
    ("changes", "severity", "kind", "message"),
    [
        ({"y": None}, "error", "missing key", "neither `y` nor `energy`"),
        ({"force": None}, "error", "missing key", "neither `force` nor `forces`"),
        ({"cell": None}, "error", "missing key", "no `cell`"),
        ({"sid": None}, "warning", "missing key", "no `sid`"),
        ({"fixed": None}, "warning", "missing key", "no `fixed`"),
        ({"y": float("nan")}, "error", "not finite", "in `y`"),
        ({"force": torch.full((2, 3), torch.inf)}, "error", "not finite", "6 NaN or inf"),
        ({"force": torch.zeros(3, 3)}, "error", "shape", r"\(3, 3\), expected \(2, 3\)"),
        ({"natoms": 3}, "error", "shape", "natoms 3"),
        ({"force": torch.full((2, 3), 90.0)}, "error", "large force", "155.9 eV/A on free atom 0"),
        ({"pos": torch.tensor([[0, 0, 0.1], [0, 0, 9.9]])}, "error", "overlap", "0.200 A apart"),
        ({"cell": torch.zeros(1, 3, 3)}, "error", "cell", "volume 0"),
        ({"atomic_numbers": torch.tensor([0, 8])}, "error", "value", "atomic numbers 0"),
        ({"atomic_numbers": torch.tensor([6.5, 8])}, "error", "value", "6.5, which is not a whole"),
        ({"atomic_numbers": torch.tensor([torch.nan, 8])}, "error", "not finite", "atomic_num"),
        ({"tags": torch.tensor([1, 3])}, "error", "value", "`tags` has values"),
        ({"tags": torch.tensor([0, 0])}, "warning", "tags", "all tags are 0"),
    ],
)
def test_bad_records_are_named(tmp_path, changes, severity, kind, message):
    import re

    split = write_split(tmp_path / "train", record(**changes))
    finding = next(f for f in check(split).findings if f.kind == kind)
    assert finding.severity == severity
    assert re.search(message, str(finding))
    if kind != "tags":
        assert finding.record == 0
        assert finding.file.endswith("data.0000.lmdb")


def test_sound_records_of_both_layouts(tmp_path):
    assert check(write_split(tmp_path / "a", record())).findings == []
    forces = torch.zeros(2, 3)
    other = record(y=None, force=None, energy=1.0, forces=forces)
    report = check(write_split(tmp_path / "b", other))
    assert report.findings == []
    assert (report.energy_key, report.forces_key) == ("energy", "forces")
    molecule = record(pbc=torch.zeros(1, 3, dtype=torch.bool), cell=torch.zeros(1, 3, 3))
    assert check(write_split(tmp_path / "c", molecule)).findings == []


def put(path: Path, key: bytes, value: bytes | None) -> None:
    env = lmdb.open(str(path), subdir=False, lock=False, map_size=2**28)
    with env, env.begin(write=True) as transaction:
        if value is None:
            transaction.delete(key)
        else:
            transaction.put(key, value)


def test_damaged_records_length_and_metadata(tmp_path):
    split = write_split(tmp_path / "train", *[record(fid=i) for i in range(4)])
    shard = split / "data.0000.lmdb"
    put(shard, b"1", b"no pickle")
    put(shard, b"2", None)
    report = check(split)
    found = {(f.record, f.kind) for f in report.findings}
    assert found == {(1, "record"), (2, "record"), (None, "length"), (None, "duplicate")}
    assert report.statistics.frames == 2
    with pytest.raises(DataError, match=r"record 1.*ndem data check"):
        dataset_statistics(split)

    put(shard, b"length", pickle.dumps(9))
    assert any("`length` says 9" in f.message for f in check(split).findings)
    np.savez(split / "metadata.npz", natoms=np.array([2, 2, 2, 5], dtype=np.int32))
    put(shard, b"length", pickle.dumps(4))
    (finding,) = [f for f in check(split).findings if f.kind == "metadata"]
    assert finding.record == 3
    assert "natoms 5" in finding.message
    np.savez(split / "metadata.npz", natoms=np.array([2.0, 2.0]))
    assert any("needs integers" in f.message for f in check(split).findings)
    (split / "metadata.npz").unlink()
    assert any(f.severity == "warning" and "missing" in f.message for f in check(split).findings)


@pytest.mark.parametrize("keep", [0.6, 0.1, 0.0])
def test_truncated_files_do_not_kill_the_process(demo, tmp_path, keep):
    split = tmp_path / "train"
    shutil.copytree(demo / "train", split)
    shard = split / "data.0000.lmdb"
    os.truncate(shard, int(keep * shard.stat().st_size) // 4096 * 4096)
    (finding,) = [f for f in check(split).findings if f.severity == "error"]
    assert finding.file == str(shard)
    assert "truncated" in finding.message or "not a readable LMDB" in finding.message
    with pytest.raises(DataError, match=r"data\.0000\.lmdb"):
        dataset_statistics(split)


def crash(task):
    if task == 1:
        os.kill(os.getpid(), signal.SIGKILL)  # as SIGBUS from a damaged map does
    return task


def test_a_task_that_kills_its_process_is_reported():
    from fairchem_kit.data.parallel import run_tasks

    results = run_tasks(
        crash, [0, 1, 2, 3], workers=2, progress=False, crashed=lambda task: f"crashed {task}"
    )
    assert results == [0, "crashed 1", 2, 3]
    with pytest.raises(DataError, match="a worker process died"):
        run_tasks(crash, [0, 1, 2, 3], workers=2, progress=False)


def test_command_exit_codes_json_and_yaml(demo, tmp_path, capsys):
    import yaml

    common = ["--no-progress", "--workers", "2"]
    result = tmp_path / "check.json"
    assert cli.main(["check", str(demo), "--json", str(result), *common]) == 0
    text = capsys.readouterr().out
    config = yaml.safe_load(text[text.index("dataset:") :])["dataset"]["train"]
    stored = json.loads(result.read_text())["splits"][0]["statistics"]
    assert config["key_mapping"] == {"y": "energy", "force": "forces"}
    normalizer = config["transforms"]["normalizer"]
    assert normalizer["forces"]["stdev"] == pytest.approx(stored["force_rms"], rel=1e-6)
    assert normalizer["energy"]["stdev"] == pytest.approx(stored["energy_stdev"], rel=1e-6)
    assert "no problems found" in text

    split = write_split(tmp_path / "train", record(tags=torch.tensor([0, 0])))
    assert cli.main(["check", str(split), *common]) == 0
    assert cli.main(["check", str(split), "--strict", *common]) == 1
    bad = write_split(tmp_path / "bad", record(y=float("nan")))
    assert cli.main(["check", str(bad), *common]) == 1
    assert "record 0: 1 NaN or inf in `y`" in capsys.readouterr().out
    assert cli.main(["check", str(tmp_path / "nothing"), *common]) == 2


def test_close_pair_agrees_with_ase():
    from ase.neighborlist import primitive_neighbor_list

    rng = np.random.default_rng(0)
    for trial in range(30):
        cell = 4 * np.eye(3) + rng.uniform(-1.5, 1.5, (3, 3))
        pbc = rng.random(3) < 0.6
        positions = rng.uniform(-6, 6, (12, 3))
        first, second, distances = primitive_neighbor_list("ijd", pbc, cell, positions, 1.0)
        distances = distances[first != second]
        found = close_pair(positions, cell, pbc, 1.0)
        if len(distances) == 0:
            assert found is None, trial
        else:
            assert found is not None, trial
            assert found[2] == pytest.approx(distances.min()), trial
