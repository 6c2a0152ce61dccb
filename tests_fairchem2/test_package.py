"""The package beside fairchem 2, and the stock command in processes of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from small import SAVING, SMALL, configs_for, train

from fairchem_kit.history.file import read_history

FAIRCHEM = str(Path(sys.executable).parent / "fairchem")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def command(demo, folder, *words):
    configs = configs_for(demo, folder)
    words = [*SMALL, f"job.run_dir={folder / 'runs'}", "+job.timestamp_id=first", *words]
    return subprocess.run(
        [FAIRCHEM, "-c", str(configs / "ndem.yaml"), *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_importing_the_package_loads_neither_torch_nor_fairchem():
    code = "import sys, ndem_ocp, ndem_ocp.fairchem2; print([m for m in sys.modules if m in "
    assert python(code + "('torch', 'fairchem.core')])") == "[]\n"


def test_names_of_the_other_host_say_where_to_go():
    code = """
import ndem_ocp
try:
    ndem_ocp.NDeMTrainer
except ImportError as error:
    print(error)
"""
    said = python(code)
    assert "needs fairchem-core 1.10; " + metadata.version("fairchem-core") in said
    assert "ndem_ocp.fairchem2" in said


def test_no_stand_in_is_served():
    """Whatever looks for torch_scatter beside fairchem 2 must hear that it is missing."""
    code = """
import importlib.util, ndem_ocp_standins
ndem_ocp_standins.install()
print([importlib.util.find_spec(n) for n in ndem_ocp_standins.STAND_INS])
"""
    assert python(code) == "[None, None, None]\n"


def test_the_doctor_finds_no_fault(capsys):
    from ndem_ocp.cli import main

    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "ndem_ocp.fairchem2.NDeMTrainEvalUnit" in said
    assert "No problems found." in said


@pytest.mark.parametrize("words", [["fit", "x.traj"], ["train", "configs/oc20/small_ndem.yml"]])
def test_commands_for_the_other_host_say_so(words):
    """Before anything is converted or written; in another process, which imports parts of it."""
    run = [sys.executable, "-m", "ndem_ocp.cli", *words]
    done = subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 2
    assert "needs fairchem-core 1.10; 2." in done.stderr
    assert "pip install '.[fairchem1]'" in done.stderr


def test_the_command_ends_a_mistake_with_status_2(demo, tmp_path):
    done = command(demo, tmp_path, "runner.train_eval_unit.ndem.curvature=none")
    assert done.returncode == 2
    sentences = [line for line in done.stderr.splitlines() if line.startswith("ndem: ")]
    assert len(sentences) == 1
    assert "ndem.curvature" in sentences[0]
    assert "Traceback" not in done.stderr


@pytest.mark.ddp
def test_two_ranks_train_and_log_once(demo, tmp_path):
    """Diagnostics are over both; the auxiliary head is in the checkpoint and not in the file."""
    start = "+runner.train_eval_unit.ndem.start=0.5"
    done = command(demo, tmp_path, "job.scheduler.ranks_per_node=2", "steps=2", start, SAVING % 10)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs/first"
    lines = read_history(run / "logs", "train")
    assert ["ndem_loss" in line for line in lines] == [False, True]
    raw = [json.loads(text) for text in (run / "logs/history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in raw if line["split"] == "train"] == [0, 1]
    names = {path.name for path in (run / "checkpoints/final").iterdir()}
    assert {"random_state.0.pt", "random_state.1.pt", "inference_ckpt.pt"} <= names


@pytest.mark.ddp
def test_ranks_of_one_graph_share_the_noise(demo, tmp_path):
    """Losses and gradients are those of one rank, which other noise on one of them would change."""
    _, alone, _ = train("ndem.yaml", demo, tmp_path / "alone", "steps=2")
    words = ["job.scheduler.ranks_per_node=2", "+job.graph_parallel.group_size=2", "steps=2"]
    words += [f"+runner.{x}_dataloader.batch_sampler_fn.min_atoms=2" for x in ("train", "eval")]
    done = command(demo, tmp_path, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    both = read_history(tmp_path / "runs/first/logs", "train")
    for one, other in zip(alone, both, strict=True):
        for name in ("loss_energy", "loss_forces", "ndem_loss", "grad_norm"):
            assert other[name] == pytest.approx(one[name], rel=1e-5), name
