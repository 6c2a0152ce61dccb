"""What a training shows, and what a start that fails leaves behind."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
import yaml

from conftest import tiny_config
from fairchem_kit.launch.console import Console, Shown, duration, short_messages
from fairchem_kit.launch.device import choose_cpu
from fairchem_kit.launch.errors import LaunchError
from fairchem_kit.launch.leftovers import Leftovers
from fairchem_kit.training.config import ConfigError
from fairchem_kit.training.early_stopping import patience_of
from launching import environment, finished, ndem
from ndem_ocp import cli

OUTPUTS = {
    "energy": {"unit": "eV", "report_unit": "meV"},
    "forces": {"unit": "kcal/mol/A"},
}


def test_lines_have_fixed_columns_and_units(capsys):
    console = Console(OUTPUTS, total=40, print_every=10)
    passed_on = []
    logger = Shown(SimpleNamespace(log=lambda *a, **k: passed_on.append(k["step"])), console)
    metrics = {"loss": 1.5, "energy_mae": 0.1, "forces_mae": 0.25, "lr": 1e-3, "epoch": 0.5}
    for step in range(1, 21):
        if step % 10 == 0:
            logger.log({"s_per_step": 0.02}, step=step, split="train")
        logger.log(metrics, step=step, split="train")
    logger.log({"energy_mae": 0.2, "forces_mae": 0.5, "epoch": 1.0, "loss": 2.0}, 20, split="val")
    logger.log({"energy_mae": 0.2, "forces_mae": 0.6, "epoch": 1.0, "loss": 2.0}, 20, split="val")
    head, first, second, val, worse = capsys.readouterr().out.splitlines()
    assert head.split("  ")[-1] == "s/step"
    assert "energy MAE (meV)" in head
    assert "force MAE (kcal/mol/Å)" in head
    assert first.startswith("train          10    0.50       1.5 ")
    assert first.split()[4:8] == ["100.0", "0.2500", "1.00e-03", "0.020"]
    assert first.endswith(" left")
    assert len({line.index("0.50") for line in (first, second)}) == 1
    assert val.endswith("best so far")
    assert not worse.endswith("best so far")
    assert head.index("lr") + 2 == first.index("1.00e-03") + 8  # right-aligned below its head
    assert passed_on == [*range(1, 10), 10, 10, *range(11, 20), 20, 20, 20, 20]


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.4, "3 s"), (65, "1:05 min"), (7300, "2:01 h"), (-1, "0 s")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_fairchems_lines_are_left_out_and_warnings_stay(capsys, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [logging.StreamHandler()])
    monkeypatch.setattr(root, "level", logging.INFO)

    def record(level, text, path):
        return logging.LogRecord("root", level, path, 1, text, (), None)

    with short_messages():
        root.handle(record(logging.INFO, "a dump", "/x/fairchem/core/utils.py"))
        root.handle(record(logging.WARNING, "look", "/x/fairchem/core/utils.py"))
        root.handle(record(logging.INFO, "going on", "/x/fairchem_kit/training/trainer.py"))
    shown = capsys.readouterr()
    assert shown.out == "going on\n"
    assert shown.err == "warning: look\n"
    assert [type(handler) for handler in root.handlers] == [logging.StreamHandler]


@pytest.fixture
def config(demo_data, tmp_path):
    content = tiny_config(demo_data)
    content["optim"].update(max_epochs=1, eval_every=5)
    path = tmp_path / "run.yml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_train_finds_its_device_and_shows_short_lines(config, tmp_path):
    words = ("train", config, "--run-dir", tmp_path / "r", "--id", "a", "--print-every", "5")
    code, out = finished(ndem(*words, env=environment(CUDA_VISIBLE_DEVICES="")))
    assert code == 0, out
    lines = [line for line in out.splitlines() if line.strip()]
    assert "on cpu" in lines[0]
    assert [line.split()[:2] for line in lines[2:]] == [
        ["train", "5"], ["val", "5"], ["train", "10"], ["val", "10"],
    ]  # fmt: skip
    assert "(INFO)" not in out


def test_verbose_brings_fairchems_lines_with_the_trainers_own_name(config, tmp_path):
    words = ("train", config, "--cpu", "--run-dir", tmp_path / "r", "--id", "a", "--verbose")
    code, out = finished(ndem(*words))
    assert code == 0, out
    assert "\ntrainer: ndem_ocp.NDeMTrainer\n" in out
    assert "forces_mae: " in out


@pytest.mark.parametrize("early", [True, False])
def test_a_failed_start_leaves_nothing(config, tmp_path, capfd, early):
    """A mistake that shows before a model is built, and one that shows after the logger is."""
    wrong = "task.ndem.sigma_maximum=1" if early else "task.freeze=['nothing']"
    run_dir = tmp_path / "deep" / "r"
    assert cli.main(["train", str(config), "--run-dir", str(run_dir), "--id", "a", wrong]) == 2
    assert "Traceback" not in capfd.readouterr().err
    assert not run_dir.exists()


def test_a_failed_start_takes_nothing_of_an_earlier_one(config, tmp_path, capfd):
    run_dir = tmp_path / "r"
    words = ["train", str(config), "--run-dir", str(run_dir), "--id", "a"]
    assert cli.main(words) == 0
    before = sorted(path for path in run_dir.rglob("*"))
    assert cli.main([*words, "task.ndem.sigma_maximum=1"]) == 2
    assert set(before) <= set(run_dir.rglob("*"))
    assert cli.main([*words[:-1], "b", "task.ndem.sigma_maximum=1"]) == 2
    assert not [*run_dir.rglob("b"), *run_dir.rglob("b.*")]


def test_leftovers_of_another_run_stay(tmp_path):
    (tmp_path / "checkpoints" / "other").mkdir(parents=True)
    (tmp_path / "status").mkdir()
    (tmp_path / "status" / "a.b.json").write_text("{}")
    before = Leftovers(tmp_path, "a")
    for folder in ("checkpoints/a", "results/a", "logs/L/a"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "status" / "a.json").write_text("{}")
    before.remove(status=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"checkpoints", "checkpoints/other", "status", "status/a.b.json"}


def test_leftovers_with_a_trained_step_stay(tmp_path):
    before = Leftovers(tmp_path, "a")
    for folder in ("checkpoints/a", "logs/L/a"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "logs/L/a/history.jsonl").write_text('{"step": 1}\n')
    before.remove(status=True)
    assert (tmp_path / "logs/L/a/history.jsonl").exists()


def test_the_device_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert choose_cpu(cpu=False)
    assert choose_cpu(cpu=True)
    with pytest.raises(LaunchError, match="--gpu: torch sees no GPU"):
        choose_cpu(cpu=False, gpu=True)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert choose_cpu(cpu=False)
    with pytest.raises(LaunchError, match="add --cpu"):
        choose_cpu(cpu=False, in_jobs=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert not choose_cpu(cpu=False, in_jobs=False)
    assert choose_cpu(cpu=True)


@pytest.mark.parametrize("value", [0, True, 1.5, "5"])
def test_a_patience_is_a_number_of_validations(value):
    with pytest.raises(ConfigError, match=r"task\.early_stopping"):
        patience_of({"early_stopping": value})


def test_a_run_ends_early_and_stays_ended(new_trainer, tmp_path):
    def edit(config):
        config["optim"].update(max_epochs=3, eval_every=2, lr_initial=0.5, checkpoint_every=2)
        config["task"]["early_stopping"] = 2

    trainer = new_trainer(edit=edit)
    trainer.update_best = lambda *a, **k: trainer.early.best_updated(better=trainer.step <= 4)
    trainer.train(disable_eval_tqdm=True)
    assert trainer.step == 8  # better at 2 and 4, no better at 6 and 8
    again = new_trainer(edit=edit)
    again.load_checkpoint(str(trainer.resume.store.directory / "checkpoint.pt"))
    again.train(disable_eval_tqdm=True)
    assert again.step == 8
    longer = new_trainer(edit=lambda config: (edit(config), config["task"].pop("early_stopping")))
    longer.load_checkpoint(str(trainer.resume.store.directory / "checkpoint.pt"))
    longer.train(disable_eval_tqdm=True)
    assert longer.step == 30
