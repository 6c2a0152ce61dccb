"""A stopped evaluation, relaxation or submission continues where it was."""

from __future__ import annotations

import json
import socket

import numpy as np
import pytest
import torch

from conftest import short_training
from fairchem_kit.data.demo_relaxations import make_relaxations
from fairchem_kit.evaluation import finished
from fairchem_kit.evaluation.model import LoadedModel
from fairchem_kit.files import TEMPORARY
from fairchem_kit.training.trainer import Trainer
from ndem_ocp import cli

SYSTEMS = 5
DEAD = 2**22 + 1  # no process has such a number


@pytest.fixture(scope="module")
def checkpoint(demo_data, tmp_path_factory):
    return short_training(demo_data, tmp_path_factory.mktemp("run")) / "checkpoint.pt"


@pytest.fixture(scope="module")
def is2re(tmp_path_factory):
    out = tmp_path_factory.mktemp("trajectories")
    make_relaxations(out, SYSTEMS, "small")
    words = ["data", "is2re", str(out), "--out", str(out / "data"), "--energy-reference"]
    assert cli.main([*words, "last-frame"]) == 0
    return out / "data"


@pytest.fixture
def predicting(monkeypatch):
    """Counts predicted batches; the one of number ``stop`` is interrupted."""
    seen = {"batches": 0, "stop": None}
    predict = LoadedModel.predict

    def counting(self, batch, seed=0):
        if seen["batches"] == seen["stop"]:
            raise KeyboardInterrupt
        seen["batches"] += 1
        return predict(self, batch, seed)

    monkeypatch.setattr(LoadedModel, "predict", counting)
    return seen


def commands(demo_data, checkpoint, out):
    """Command line and files, by name of the command; ten structures, five batches each."""
    split = str(demo_data / "val_id")
    parts = [w for n in ("id", "ood-ads", "ood-cat", "ood-both") for w in (f"--{n}", split)]
    common = ["--cpu", "--batch-size", "2", "--out"]
    return {
        "eval": (["eval", str(checkpoint), "--data", split, *common, str(out)], out),
        "submission": (
            ["submission", "write", str(checkpoint), *parts, *common, str(out / "s.npz")],
            out / "s.npz",
        ),
    }


def content(path):
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=True) as stored:
            return {name: stored[name].tolist() for name in stored.files}
    metrics = json.loads((path / "metrics.json").read_text())["splits"]["val_id"]["metrics"]
    return metrics, (path / "val_id.samples.csv").read_text()


@pytest.mark.parametrize("command", ["eval", "submission"])
def test_a_stopped_command_continues(command, demo_data, checkpoint, tmp_path, predicting, capsys):
    words, whole = commands(demo_data, checkpoint, tmp_path / "whole")[command]
    (tmp_path / "whole").mkdir()
    assert cli.main(words) == 0
    batches = predicting["batches"]
    (tmp_path / "parts").mkdir()
    words, parts = commands(demo_data, checkpoint, tmp_path / "parts")[command]
    left = tmp_path / "parts" / f"{TEMPORARY}{socket.gethostname()}-{DEAD}-files"
    left.mkdir()  # by a command that was killed
    predicting.update(batches=0, stop=3)
    assert cli.main(words) == 130
    assert list((tmp_path / "parts").glob("**/*.pt"))
    predicting.update(batches=0, stop=None)
    capsys.readouterr()
    assert cli.main(words) == 0
    assert predicting["batches"] == batches - 3
    assert "3 batches of 5 from the command that was stopped" in capsys.readouterr().err
    assert content(parts) == content(whole)
    assert not list((tmp_path / "parts").glob("**/*.pt"))
    assert left.exists() == (command == "submission")  # which is one file


def test_a_stopped_relaxation_continues(checkpoint, is2re, tmp_path, monkeypatch, capsys):
    words = ["relax", str(checkpoint), "--data", f"x={is2re}", "--cpu", "--batch-size", "2"]
    words += ["--steps", "2", "--out"]
    assert cli.main([*words, str(tmp_path / "whole")]) == 0
    from fairchem_kit.evaluation import relaxation

    relax, seen = relaxation.ml_relax, []

    def stopping(**kwargs):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(kwargs["batch"])
        return relax(**kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(relaxation, "ml_relax", stopping)
        assert cli.main([*words, str(tmp_path / "parts")]) == 130
        assert len(seen) == 2
    capsys.readouterr()
    assert cli.main([*words, str(tmp_path / "parts")]) == 0
    assert "x: 2 batches of 3 from the command that was stopped" in capsys.readouterr().err
    whole, parts = ((tmp_path / folder / "x.relaxations.csv").read_text()
                    for folder in ("whole", "parts"))  # fmt: skip
    assert parts == whole


def test_batches_of_another_checkpoint_or_a_damaged_file_are_computed_again(
    demo_data, checkpoint, tmp_path, predicting
):
    words, _ = commands(demo_data, checkpoint, tmp_path / "out")["eval"]
    predicting["stop"] = 3
    assert cli.main(words) == 130
    (kept,) = (tmp_path / "out").glob("**/*.pt")
    kept.write_bytes(kept.read_bytes()[:-200])
    predicting.update(batches=0, stop=3)
    assert cli.main(words) == 130  # all anew
    other = tmp_path / "other.pt"
    state = torch.load(checkpoint, weights_only=False)
    torch.save({**state, "step": 7}, other)
    predicting.update(batches=0, stop=None)
    assert cli.main([words[0], str(other), *words[2:]]) == 0
    assert predicting["batches"] == 5


def test_results_are_read_without_running_code(tmp_path):
    from fairchem_kit.evaluation.submission import PredictedBatch, Predictions

    kinds = (PredictedBatch, Predictions)
    first = Predictions(np.array(["a", 3], dtype=object), np.array([1.5]), np.ones((2, 3)),
                        np.array([2]))  # fmt: skip
    store = finished.Finished(tmp_path, kinds)
    with store.missing([0]) as missing:
        assert missing == [0]
        store.add(PredictedBatch(0, first))
    again = finished.Finished(tmp_path, kinds)
    with again.missing([0, 1]) as missing:
        assert missing == [1]
    (found,) = again.of([0])
    assert found.predictions.ids.tolist() == ["a", 3]
    assert found.predictions.ids.dtype == object
    np.testing.assert_array_equal(found.predictions.forces, first.forces)
    torch.save([Trainer], tmp_path / "0.pt")  # a class is no plain value
    with finished.Finished(tmp_path, kinds).missing([0]) as missing:
        assert missing == [0]
