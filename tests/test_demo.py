"""`ndem demo` from end to end, small."""

from __future__ import annotations

import json

import pytest

from conftest import ROOT
from ndem_ocp import cli


@pytest.mark.slow
def test_the_demo_trains_validates_and_draws(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "run"
    command = ["demo", "--size", "small", "--data", str(tmp_path / "data"), "--out", str(out)]
    quick = ["--", "--optim.max_epochs=12", "--optim.eval_every=60", "--optim.batch_size=4"]
    assert cli.main([*command, *quick]) == 0
    printed = capfd.readouterr().out
    assert "fairchem --mode train" in printed

    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["training"]["steps"] == 120
    for split in ("val_id", "val_ood"):
        ours, theirs = metrics[split], metrics[split]["fairchem_validate"]
        # Predictions beside labels, and fairchem's own validation, are two ways to one number.
        assert ours["forces_mae_eV_per_A"] == pytest.approx(theirs["forces_mae"], rel=0.02)
        assert ours["energy_mae_eV"] == pytest.approx(theirs["energy_mae"], rel=0.02)
        assert ours["forces_mae_eV_per_A"] < ours["zero_force_mae_eV_per_A"]
    for name in ("checkpoint.pt", "curves.png", "parity.png"):
        assert (out / name).stat().st_size > 10_000
    assert list(out.rglob("*.wandb")), "no offline W&B run"


def test_a_failing_step_shows_its_command_and_the_end_of_its_log(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    (tmp_path / "data" / "train").mkdir(parents=True)  # and no val_id beside it
    options = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    assert cli.main(["demo", *options]) == 2
    captured = capfd.readouterr()
    assert "$ fairchem --mode train" in captured.out
    assert "dataset.val.src" in captured.err
