"""Inputs by which a command went wrong without a word, or ended in a traceback."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from types import SimpleNamespace

import lmdb
import numpy as np
import pytest
import torch
import yaml
from torch_geometric.data import Data

from fairchem_kit.data.demo import make_demo
from fairchem_kit.data.errors import DataError
from fairchem_kit.data.records import iter_structures
from fairchem_kit.data.split_record import split_record
from fairchem_kit.data.units import units_of
from fairchem_kit.evaluation.errors import EvaluationError
from fairchem_kit.evaluation.splits import read_splits
from fairchem_kit.launch import requeue
from fairchem_kit.launch.command import split_words
from fairchem_kit.launch.errors import LaunchError
from fairchem_kit.launch.sweep_file import SweepError, read_sweep
from fairchem_kit.launch.tasks import tasks_of
from ndem_ocp.cli import main
from ndem_ocp.fit.config import _quoted
from ndem_ocp.second_views.sidecar import read_meta

EMT = "ase.calculators.emt:EMT()"


def test_a_link_to_a_split_keeps_what_is_known_of_it(demo_data, tmp_path):
    link = tmp_path / "elsewhere" / "mine"
    link.parent.mkdir()
    link.symlink_to(demo_data / "train")
    found, known = split_record(link), split_record(demo_data / "train")
    assert known.units
    assert (found.units, found.elements, found.reference) == (
        known.units, known.elements, known.reference
    )  # fmt: skip
    assert units_of(link) == units_of(demo_data / "train")


def test_a_split_is_not_called_as_the_row_of_the_mean(demo_data, tmp_path):
    for word in (f"mean={demo_data / 'train'}", str(tmp_path / "mean")):
        (tmp_path / "mean").mkdir(exist_ok=True)
        with pytest.raises(EvaluationError, match="mean over the splits"):
            read_splits([word])


def test_a_path_may_contain_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1").mkdir()
    (tmp_path / "lr=1" / "run.yml").write_text("{}\n")
    for given, name in (
        ("lr=1", "lr-1"),
        (str(tmp_path / "lr=1"), "lr-1"),
        (f"val={tmp_path / 'lr=1'}", "val"),
    ):
        (split,) = read_splits([given])
        assert split.name == name
        assert split.path.resolve() == tmp_path / "lr=1"
    config, _, overrides = split_words(["lr=1/run.yml", "optim.lr_initial=1e-4"])
    assert config == Path("lr=1/run.yml")
    assert overrides == ["--optim.lr_initial=1e-4"]


@pytest.mark.parametrize("name", ["emo\U0001f600", "é", "a b", 'quo"te', "tab\there"])
def test_a_path_in_a_configuration_is_read_back(name):
    assert yaml.safe_load(_quoted(Path("/data") / name)) == f"/data/{name}"


@pytest.mark.parametrize("seed", ["-1", "4294967296", "1.5", "x"])
@pytest.mark.parametrize(
    "words",
    [
        ["fit", "frames.extxyz"],
        ["data", "ase", "frames.extxyz", "--out", "out"],
        ["data", "second-views", "data", "--calculator", EMT, "--out", "out"],
    ],
    ids=" ".join,
)
def test_a_seed_that_numpy_does_not_take_is_one_sentence(words, seed, capsys):
    assert main([*words, f"--seed={seed}"]) == 2
    assert f"{seed!r} is not a whole number from 0 to 4294967295" in capsys.readouterr().err
    with pytest.raises(LaunchError, match="--seed"):
        split_words(["run.yml", "--seed", seed])


SWEEP = {"config": "run.yml", "test": "none", "metrics": ["forces_mae"], "arms": {"a": None}}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seeds", 3),
        ("seeds", ["x"]),
        ("seeds", [-1]),
        ("arms", ["a", "b"]),
        ("arms", {"a": 5}),
        ("grid", {"optim.batch_size": 4}),
        ("config", 5),
        ("metrics", 5),
        ("overrides", [1]),
    ],
)
def test_a_value_of_another_kind_in_a_sweep_file(key, value, tmp_path):
    (tmp_path / "run.yml").write_text("{}\n")
    path = tmp_path / "sweep.yml"
    path.write_text(yaml.safe_dump({**SWEEP, key: value}))
    with pytest.raises(SweepError, match=key):
        read_sweep(path)


@pytest.mark.parametrize(
    "changes", [{"seeds": [0, 0]}, {"arms": {"a/b": None, "a_b": None}}], ids=["seeds", "arms"]
)
def test_two_runs_of_a_sweep_never_share_a_folder(changes, tmp_path, capsys):
    (tmp_path / "run.yml").write_text("{}\n")
    path = tmp_path / "sweep.yml"
    path.write_text(yaml.safe_dump({**SWEEP, **changes}))
    sweep = read_sweep(path)
    with pytest.raises(SweepError, match="two runs would be written to"):
        tasks_of(sweep, tmp_path / "runs", sweep.seeds)
    assert main(["sweep", str(path), "--cpu", "--out", str(tmp_path / "runs")]) == 2
    assert "two runs would be written to" in capsys.readouterr().err


def views(data: Path, out: Path, *more: str) -> int:
    words = ["data", "second-views", str(data), "--calculator", EMT, "--out", str(out)]
    return main([*words, "--draws", "2", "--scale", "1", "--no-progress", *more])


def test_views_of_one_data_set_are_not_continued_with_another(demo_data, tmp_path, capsys):
    out = tmp_path / "views.lmdb"
    assert views(demo_data / "train", out) == 0
    meta = read_meta(out)
    make_demo(tmp_path / "other", size="small", seed=7, progress=False)
    assert views(tmp_path / "other" / "train", out) == 2
    assert "has views of other records" in capsys.readouterr().err
    assert views(demo_data / "train", out) == 0
    assert read_meta(out) == meta


def records(folder: Path, structures: list[dict], **changed) -> Path:
    """A split whose second record has other fields."""
    folder.mkdir()
    for number, fields in enumerate(structures):
        fields.update(changed if number == 1 else {})
    file = folder / "data.0000.lmdb"
    with (
        lmdb.open(str(file), subdir=False, map_size=2**26, lock=False) as env,
        env.begin(write=True) as transaction,
    ):
        for number, fields in enumerate(structures):
            transaction.put(b"%d" % number, pickle.dumps(Data(**fields)))
        transaction.put(b"length", pickle.dumps(len(structures)))
    return folder


def fields() -> dict:
    return {
        "pos": torch.rand(4, 3) * 3, "cell": torch.eye(3)[None] * 20, "natoms": 4,
        "atomic_numbers": torch.tensor([1.0, 6, 8, 1]), "y": 0.1, "force": torch.rand(4, 3),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"pos": torch.full((4, 3), math.nan)}, "NaN or inf in `pos`"),
        ({"pos": torch.rand(12)}, "`pos` has shape"),
        ({"cell": torch.diag(torch.tensor([9.0, 9, 0]))[None]}, "cell of volume 0"),
        ({"fixed": torch.zeros(3)}, "`fixed` has shape"),
        ({"atomic_numbers": torch.tensor([1.0, 6, 8, 400])}, "atomic numbers 1 to 400"),
        ({"y": [0.1, 0.2]}, "the energy is not one number"),
    ],
)
def test_a_record_that_is_no_structure_is_named(changed, words, tmp_path):
    folder = records(tmp_path / "set", [fields(), fields()], **changed)
    with pytest.raises(DataError, match=f"record 1: .*{words}.*ndem data check"):
        list(iter_structures(folder))


@pytest.mark.parametrize("sid", [[1, 2], torch.tensor([7]), "name", None, []])
def test_systems_may_be_named_in_any_way(sid, tmp_path):
    more = {} if sid is None else {"sid": sid}
    _, found = iter_structures(records(tmp_path / "set", [fields(), fields()], **more))
    assert hash(found.sid) is not None


def test_a_damaged_file_of_a_submission_is_one_sentence(tmp_path, capsys):
    path = tmp_path / "s.npz"
    np.savez_compressed(path, id_forces=np.arange(3000.0).reshape(-1, 3))
    content = bytearray(path.read_bytes())
    content[200:400] = bytes(200)
    path.write_bytes(content)
    assert main(["submission", "check", str(path)]) == 1
    assert "cannot be read as an npz file" in capsys.readouterr().out


def test_a_name_that_is_not_text_is_refused(capsys):
    assert main(["fit", "caf\udce9.extxyz"]) == 2
    assert "this name is not UTF-8 text" in capsys.readouterr().err


def test_print_every_is_a_number_of_steps(tmp_path, capsys):
    config = tmp_path / "run.yml"
    config.write_text("{}\n")
    for value, words in (("0", "must be at least 1, not 0"), ("x", "'x' is not a whole number")):
        assert main(["train", str(config), "--print-every", value]) == 2
        assert f"--print-every {words}" in capsys.readouterr().err


def test_a_task_that_a_folder_does_not_have(tmp_path, monkeypatch, capsys):
    manifest = SimpleNamespace(tasks=[None, None])
    monkeypatch.setattr(requeue, "slurm_job", lambda: SimpleNamespace(id="1", attempt="1"))
    monkeypatch.setattr(requeue, "read_manifest", lambda folder: manifest)
    for number in ("2", "x"):
        monkeypatch.setenv(requeue.TASK, number)
        assert main(["requeue", "75", "--folder", str(tmp_path)]) == 2
        assert f"NDEM_TASK={number}: {tmp_path} has 2 tasks, from 0" in capsys.readouterr().err
