"""Inputs by which a command went wrong without a word, or ended in a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fairchem_kit.data.demo import make_demo
from fairchem_kit.data.split_record import split_record
from fairchem_kit.data.units import units_of
from fairchem_kit.evaluation.errors import EvaluationError
from fairchem_kit.evaluation.splits import read_splits
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
