"""Histories, predictions and their labels, figures, provenance, the README's tables."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from matplotlib import image

from conftest import ROOT, steps
from fairchem_kit.history.logger import HistoryLogger, find_history, read_history
from fairchem_kit.provenance import config_hash, files_hash, git_commit, provenance
from fairchem_kit.report.plots import plot_curves, plot_parity
from fairchem_kit.report.predictions import Parity, load_parity
from ndem_ocp.bench.pages import write as readme_tables


def logger_in(folder: Path, inner: str | None = None) -> HistoryLogger:
    return HistoryLogger(
        {"logger": {"name": "x", "inner": inner}, "cmd": {"logs_dir": str(folder)}}
    )


def test_history_keeps_steps_splits_and_plain_numbers(tmp_path):
    log = logger_in(tmp_path)
    log.log({"loss": torch.tensor(2.5), "lr": 1e-3, "bad": float("nan")}, step=1, split="train")
    log.log({"forces_mae": 0.5}, step=2, split="val")
    records = read_history(tmp_path)
    assert [(r["step"], r["split"]) for r in records] == [(1, "train"), (2, "val")]
    assert records[0]["loss"] == 2.5
    assert "bad" not in records[0]
    assert records[0]["time_s"] <= records[1]["time_s"]
    assert read_history(tmp_path, "val") == records[1:]


def test_an_incomplete_last_line_is_left_out_and_a_broken_one_named(tmp_path):
    log = logger_in(tmp_path)
    for step in (1, 2):
        log.log({"loss": 1.0}, step=step, split="train")
    whole = log.path.read_text()
    log.path.write_text(whole[:-8])
    assert [r["step"] for r in read_history(tmp_path)] == [1]
    log.path.write_text("{broken\n" + whole)
    with pytest.raises(ValueError, match="line 1"):
        read_history(tmp_path)


def test_history_passes_everything_on_to_the_inner_logger(tmp_path):
    log = logger_in(tmp_path, "tensorboard")
    log.log({"loss": 1.0}, step=1, split="train")
    log._inner.writer.close()
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_a_lost_inner_logger_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    log = logger_in(tmp_path, "tensorboard")

    def gone(*args):
        raise BrokenPipeError("the service is gone")

    monkeypatch.setattr(log._inner._logger, "log", gone)
    for step in (1, 2):
        log.log({"loss": 1.0}, step=step, split="train")
    log.mark_preempting()
    assert [r["step"] for r in read_history(tmp_path)] == [1, 2]
    (said,) = [r.message for r in caplog.records if "has failed" in r.message]
    assert "TensorboardLogger has failed (BrokenPipeError: the service is gone)" in said


def test_a_missing_history_says_what_writes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ndem_ocp\.HistoryLogger"):
        find_history(tmp_path)


def test_predictions_are_matched_with_labels_by_id(new_trainer, demo_data, tmp_path):
    """fairchem's own predictions file, against labels read without fairchem."""

    def with_test_set(config):
        config["dataset"]["test"] = {"src": str(demo_data / "val_ood")}
        config["task"]["prediction_dtype"] = "float32"

    trainer = new_trainer(edit=with_test_set)
    steps(trainer, 1)
    trainer.predict(trainer.test_loader, results_file="predictions", disable_tqdm=True)
    parity = load_parity(next(tmp_path.rglob("*_predictions.npz")), demo_data / "val_ood")
    energies, squares = [], []
    for path in sorted((demo_data / "val_ood").glob("*.lmdb")):
        env = lmdb.open(str(path), subdir=False, readonly=True, lock=False)
        with env, env.begin() as transaction:
            for key, value in transaction.cursor():
                if key == b"length":
                    continue
                record = pickle.loads(value)
                energies.append(float(record.y))
                free = torch.as_tensor(record.fixed) == 0
                squares.append(float(record.force[free].square().sum()))
    assert sorted(parity.reference_energy) == pytest.approx(sorted(energies))
    assert (parity.reference_forces**2).sum() == pytest.approx(sum(squares), rel=1e-6)
    assert parity.forces.shape == parity.reference_forces.shape
    metrics = parity.metrics()
    direct = np.abs(parity.forces - parity.reference_forces).mean()
    assert metrics["forces_mae_eV_per_A"] == pytest.approx(direct)
    with pytest.raises(ValueError, match="another data set"):
        load_parity(next(tmp_path.rglob("*_predictions.npz")), demo_data / "val_id")


def parity_of(frames: int) -> Parity:
    rng = np.random.default_rng(0)
    force, energy = rng.normal(size=(frames * 5, 3)), rng.normal(size=frames)
    return Parity(energy + 0.1, energy, force * 0.9, force)


@pytest.mark.parametrize("frames", [3, 400])
def test_pictures_are_drawn(tmp_path, frames):
    history = [
        {"step": s, "split": "train", "forces_mae": 1 / s, "energy_mae": 1 / s,
         "ndem_noise_cosine": 0.5, "ndem_noise_error_A": 0.03, "ndem_noise_size_A": 0.04}
        for s in range(1, 30)
    ] + [{"step": 20, "split": "val", "forces_mae": 0.3, "energy_mae": 0.2}]  # fmt: skip
    for path in (
        plot_curves(history, 0.4, tmp_path / "curves.png", window=1),
        plot_parity({"a": parity_of(frames), "b": parity_of(frames)}, tmp_path / "parity.png"),
    ):
        pixels = image.imread(path)
        assert min(pixels.shape[:2]) > 300
        assert pixels[..., :3].std() > 0.02, "an empty picture"


def test_provenance_changes_with_what_it_names(tmp_path):
    assert config_hash({"a": 1}) != config_hash({"a": 2})
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1})
    (tmp_path / "x.lmdb").write_bytes(b"one")
    first = files_hash(tmp_path)
    (tmp_path / "x.lmdb").write_bytes(b"two")
    assert files_hash(tmp_path) != first
    origin = provenance(ROOT)
    assert origin["hardware"]["torch"] == torch.__version__
    assert {"commit", "command", "date"} <= origin.keys()


# --- README --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", readme_tables.PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- table: ") == text.count("<!-- end table -->") >= 1
    link = readme_tables.PAGES[page]
    assert readme_tables.filled(text, ROOT / "results", link) == text, "run `make results`"


def test_a_result_that_is_absent_is_not_run(tmp_path):
    for table in readme_tables.TABLES.values():
        assert "not run" in table(tmp_path)
    assert "not run" in readme_tables.oc20_trajectories(tmp_path)


def test_every_result_can_be_traced():
    for path in (ROOT / "results").glob("*.json"):
        found = json.loads(path.read_text())
        needed = {"commit", "command", "hardware"}
        if path.name == "reliability.json":  # each of its test files has its own
            assert all(set(run) >= needed for run in found.values())
            continue
        if path.name.startswith("curvature_"):  # a measurement of data: no training, one unit
            needed |= {"data", "unit", "seed", "displacement_A"}
        elif path.name == "gpu_predicted.json":  # counted, on a generated structure
            needed |= {"units", "model", "layers", "atoms", "device"}
        elif "backbones" not in found:  # the contract suite: no training on data of the world
            needed |= {"config_hash", "data", "seeds", "units"}
        missing = needed - set(found)
        assert not missing, f"{path.name} lacks {missing}"


def test_links_and_pictures_of_the_documentation_exist():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_configurations_that_the_documentation_names_exist():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for name in re.findall(r"configs/oc20/[\w.]+\.yml", page.read_text(encoding="utf-8")):
            if name != "configs/oc20/mine.yml":  # the reader's own copy
                assert (ROOT / name).exists(), f"{page.name} names {name}"


# --- the command ---------------------------------------------------------------------------------


def test_doctor_finds_no_problem_here(capsys):
    from ndem_ocp import cli

    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "torch_scatter" in printed
    assert "No problems found" in printed


def test_doctor_names_a_problem_and_its_fix(monkeypatch, capsys):
    from ndem_ocp import cli, doctor

    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda p: "2.3.0" if p == "fairchem-core" else real(p))
    assert cli.main(["doctor"]) == 1
    assert "pip install '.[fairchem1]' (1.10)" in capsys.readouterr().out


def test_the_command_answers_bad_input_with_a_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ndem_ocp.cli", "data", "check", str(tmp_path / "nothing")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "nothing" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_commit_is_dirty_by_code_and_not_by_results(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True)

    assert git_commit(tmp_path / "nowhere") == "unknown"
    git("init", "--quiet")
    (tmp_path / "results").mkdir()
    for name in ("code.py", "results/one.json"):
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    clean = git_commit(tmp_path)
    assert len(clean) == 40
    (tmp_path / "results/one.json").write_text("2")
    (tmp_path / "results/two.json").write_text("2")
    assert git_commit(tmp_path) == clean
    (tmp_path / "code.py").write_text("2")
    assert git_commit(tmp_path) == f"{clean}-dirty"
