"""Splits, energy references and output directories of a conversion."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from ase.io import write

import data_cli as cli
from fairchem_kit.data.errors import DataError
from fairchem_kit.data.reference import fit_linear, last_frame_reference, load_linear
from test_data_support import make_frames, records, run, trajectories

__all__ = ["trajectories"]  # a fixture


def test_split_by_system(tmp_path, trajectories):
    entry = run(trajectories, tmp_path / "out", val_fraction=0.25, test_fraction=0.25, seed=3)
    assert {k: v["systems"] for k, v in entry["splits"].items()} == {
        "train": 2,
        "val": 1,
        "test": 1,
    }
    sids = [{r["sid"] for r in records(tmp_path / "out" / s)} for s in ("train", "val", "test")]
    assert sum(len(part) for part in sids) == len(set.union(*sids)) == 4
    systems = json.loads((tmp_path / "out" / "systems.json").read_text())
    assert set.union(*sids) == {entry["sid"] for entry in systems.values()}


def test_one_split_after_the_other_into_one_directory(tmp_path, trajectories):
    out = tmp_path / "out"
    run(trajectories[:3], out, split="train", energy_reference="linear")
    with pytest.raises(DataError, match="fitted on the training split"):
        run(trajectories[:1], out, split="val", energy_reference="linear")
    run(trajectories[2:3], out, split="val", energy_reference=str(out / "linear_reference.npz"))
    with pytest.raises(DataError, match="--overwrite"):
        run(trajectories[:1], out, split="val")
    dataset = json.loads((out / "dataset.json").read_text())
    assert [list(c["splits"]) for c in dataset["conversions"]] == [["train"], ["val"]]
    assert records(out / "val")[0]["sid"] == 2
    other = tmp_path / "other.traj"
    write(other, make_frames("Cu", seed=9))
    reference = str(out / "linear_reference.npz")
    run([other], out, split="val", energy_reference=reference, overwrite=True)
    assert records(out / "val")[0]["sid"] == 3
    assert sorted(p.name for p in out.iterdir()) == [
        "dataset.json",
        "linear_reference.npz",
        "systems.json",
        "train",
        "val",
    ]


def test_last_frame_reference(tmp_path, trajectories):
    run(trajectories[:2], tmp_path / "out", energy_reference="last-frame")
    energies = np.array([r["y"] for r in records(tmp_path / "out/train")]).reshape(2, 5)
    assert energies[:, -1].tolist() == [0.0, 0.0]
    raw = [f.calc.results["energy"] for f in make_frames("Ag", seed=1)]
    np.testing.assert_allclose(energies[1], np.array(raw) - raw[-1])
    reference = last_frame_reference(np.array([1, 0, 1]), np.array([1.0, 2.0, 3.0]))
    assert reference.tolist() == [3.0, 2.0, 3.0]


def test_linear_fit_is_the_least_squares_solution():
    rng = np.random.default_rng(0)
    compositions = [((1, 2), (8, 1)), ((1, 1), (8, 3)), ((8, 2),)]
    index = rng.integers(0, 3, 50)
    counts = np.array([[2, 1], [1, 3], [0, 2]])[index]
    energy = counts @ np.array([-1.5, -4.0]) + rng.normal(0, 0.1, 50)
    coefficients, seen = fit_linear(compositions, index, energy)
    expected = np.linalg.lstsq(counts, energy, rcond=None)[0]
    np.testing.assert_allclose(coefficients[[1, 8]], expected)
    assert np.flatnonzero(seen).tolist() == [1, 8]


def test_linear_reference_is_fitted_on_train_only_and_reads_back(tmp_path, trajectories):
    paths = [trajectories[0]]
    for number in range(3):
        path = tmp_path / f"cu{number}.traj"
        write(path, make_frames("Cu", seed=10 + number))
        paths.append(path)
    out = tmp_path / "out"
    run(paths, out, energy_reference="linear", val_fraction=0.25)
    train = [r["y"] for r in records(out / "train")]
    assert np.mean(train) == pytest.approx(0, abs=1e-8)
    assert abs(np.mean([r["y"] for r in records(out / "val")])) > 1e-3
    coefficients, seen = load_linear(out / "linear_reference.npz")
    assert np.flatnonzero(seen).tolist() == [8, 29]
    systems = json.loads((out / "systems.json").read_text())
    for entry in systems.values():
        total = 8 * coefficients[29] + coefficients[8]
        assert entry["reference_energy_eV"] == pytest.approx(total)


def test_linear_reference_does_not_cover_an_element(tmp_path, trajectories):
    with pytest.raises(DataError, match=r"no coefficient for .*last-frame"):
        run(trajectories, tmp_path / "out", energy_reference="linear", val_fraction=0.25)
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="neither a file nor one of none, last-frame"):
        run(trajectories, tmp_path / "out", energy_reference=str(tmp_path / "no.npz"))
    np.savez(tmp_path / "other.npz", values=np.zeros(3))
    for path, message in ((trajectories[0], "this is not an npz file"), ("other.npz", "`coeff`")):
        with pytest.raises(DataError, match=message):
            run(trajectories, tmp_path / "out", energy_reference=str(tmp_path / path))


def test_workers_give_the_same_records(tmp_path, trajectories):
    for workers in (1, 2):
        run(trajectories, tmp_path / str(workers), frames_per_shard=6, workers=workers)
    first, second = (records(tmp_path / str(w) / "train") for w in (1, 2))
    assert len(first) == len(second) == 20
    for a, b in zip(first, second):
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[key], b[key]) for key in a)


def test_targets_are_not_lost(tmp_path, trajectories):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="was not written by this command"):
            run(trajectories[:1], out, overwrite=overwrite)
    assert (out / "mine.txt").read_text() == "keep"
    (out / "mine.txt").unlink()
    run(trajectories[:1], out)
    with pytest.raises(DataError, match="already holds a data set"):
        run(trajectories[1:2], out)
    run(trajectories[1:2], out, overwrite=True)
    assert json.loads((out / "systems.json").read_text()).keys() == {"system1"}
    assert not [p for p in tmp_path.iterdir() if "partial" in p.name or "replaced" in p.name]
    for mine in (out / "train" / "notes.txt", out / "checkpoints" / "ck.pt"):
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("keep")
        with pytest.raises(DataError, match="would delete"):
            run(trajectories[1:2], out, overwrite=True)
        assert mine.read_text() == "keep"
        mine.unlink()
    (out / "checkpoints").rmdir()
    link = tmp_path / "link"
    link.symlink_to(out)
    run(trajectories[:1], link, overwrite=True)
    assert link.is_symlink()
    assert json.loads((out / "systems.json").read_text()).keys() == {"system0"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "val", "val_fraction": 0.1}, "leave out the fractions"),
        ({"split": "a/b"}, "letters, digits"),
        ({"max_force": -1}, "above 0"),
        ({"frames_per_shard": 0}, "at least 1"),
        ({"max_force": 1e-9}, "have a force above 1e-09 eV/A"),
    ],
)
def test_bad_options(tmp_path, trajectories, options, message):
    with pytest.raises(DataError, match=message):
        run(trajectories[:1], tmp_path / "out", **options)


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 2), (signal.SIGTERM, 1)])
def test_interrupted_conversion_leaves_nothing(tmp_path, number, workers):
    frames = make_frames(count=40)
    write(tmp_path / "a.traj", frames)
    code = f"""
import os, sys, time
import fairchem_kit.data.frame_records as frame_records
plain = frame_records.read_frame
def slow(*args):
    os.write(1, b"writing\\n")
    time.sleep(0.2)
    return plain(*args)
frame_records.read_frame = slow
from ndem_ocp.cli import main
sys.exit(main(["data", "ase", {str(tmp_path / "a.traj")!r}, "--out", {str(tmp_path / "out")!r},
               "--workers", "{workers}", "--frames-per-shard", "10", "--no-progress"]))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    start = time.monotonic()
    os.kill(process.pid, number)
    assert process.wait(timeout=60) == 130
    process.stdout.close()
    assert time.monotonic() - start < 30
    assert [p.name for p in tmp_path.iterdir()] == ["a.traj"]


def test_command_line(tmp_path, trajectories, capsys):
    out = str(tmp_path / "out")
    arguments = ["ase", str(trajectories[0]), "--out", out, "--no-progress", "--workers", "1"]
    assert cli.main(arguments) == 0
    assert "5 frames of 1 system" in capsys.readouterr().out
    assert cli.main(arguments) == 2
    assert "ndem: " in capsys.readouterr().err
    assert cli.main([*arguments[:-1], "0"]) == 2
