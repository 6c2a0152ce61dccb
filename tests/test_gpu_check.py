"""ndem_ocp.bench.gpu: a dry run on the CPU, deadlines, one file with every result."""

from __future__ import annotations

import importlib
import json
import sys
import time

import pytest

from ndem_ocp.bench.gpu import check as gpu_check
from ndem_ocp.bench.gpu.results import Check, Results


@pytest.fixture
def stage(tmp_path, demo_data):
    """Run a stage in this process; gives its part of the file."""
    (tmp_path / "ndem-small").symlink_to(demo_data)

    def run(name: str, seconds: float = 500):
        check = Check("cpu", time.time() + seconds, tmp_path, tiny=True)
        out = tmp_path / "out.json"
        importlib.import_module(f"ndem_ocp.bench.gpu.{name}").run(check, Results(out, name))
        found = json.loads(out.read_text())
        assert gpu_check._errors(found) == []
        return found[name]

    return run


def test_environment(stage):
    found = stage("environment")
    assert found["versions"]["torch"]
    assert found["copy, TB/s"] > 0
    assert set(found["matrix products, TFLOP/s"]) == {"fp32", "tf32", "bf16"}


def test_equality(stage):
    found = stage("equality")
    assert max(found["torch.float64"]["L4 M2"].values()) < 1e-12
    assert max(found["torch.float32"]["L4 M2"].values()) < 1e-3
    assert max(found["two views"].values()) < 1e-12
    assert all(
        each["not fairchem's"] == each["not the CPU's"] == 0 for each in found["edges"].values()
    )
    for name in ("upstream", "ours"):
        assert max(found["precisions, error to float64"][name]["fp32"].values()) < 1e-3
    assert len(found["training steps"]["cpu"]) == 5
    assert set(found["kernels, to torch's code"]) == {"fp32", "tf32", "bf16"}
    assert found["kernels in use"] == {}  # on a CPU
    twice = found["the same step twice"]
    assert set(twice) == {"kernels", "torch's code", "task.deterministic"}
    assert all(error == 0 for each in twice.values() for error in each.values())


def test_step_times_and_kernels(stage):
    found = stage("step_times")
    arms = found["31M"]["fp32, batch 1"]
    assert arms["upstream"]["to upstream"] == 1
    assert arms["ndem"]["edges"] == 2 * arms["plain"]["edges"]
    assert arms["instead"]["edges"] == arms["plain"]["edges"]
    assert arms["ndem, torch's code"]["edges"] == arms["ndem"]["edges"]
    assert {"plain", "plain, torch's code"} <= set(found["inference"]["fp32, batch 1"])
    assert found["inference"]["fp32, batch 1"]["plain"] > 0
    found = stage("kernels")
    assert found["ndem"]["step"]["operations"] > found["plain"]["step"]["operations"] > 0
    assert found["upstream"]["longest"][0]["ms"] > 0


def test_second_views(stage):
    found = stage("second_views")
    assert set(found) == {"plain", "ndem", "second views, in place"}
    assert all(each["steps"] > 0 and each["forces_mae"] > 0 for each in found.values())


@pytest.mark.slow
@pytest.mark.timeout(1800)  # four processes that start, one after another
def test_a_run_is_killed_and_resumed(stage):
    found = stage("whole_run", 1700)
    assert found["killed"]["had a checkpoint"]
    assert found["whole"] == found["broken"] == {"exit status": 0}
    assert found["validations"]["whole"] == found["validations"]["broken"]
    assert "forces" in found["evaluation"]["cpu"]


def test_results_are_in_the_file_at_once_and_faults_are_results(tmp_path):
    out = Results(tmp_path / "out.json", "a")
    out.put("x", "y", 1)
    assert json.loads(out.path.read_text()) == {"a": {"x": {"y": 1}}}
    with out.guarded("x", "z"):
        raise ValueError("this is wrong")
    Results(out.path, "b").put("n", 2)
    found = json.loads(out.path.read_text())
    assert found["a"]["x"]["y"] == 1
    assert gpu_check._errors(found) == ["/a/x/z: ValueError: this is wrong"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_a_stage_ends_at_its_deadline_with_all_it_started(tmp_path):
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(4); open({str(mark)!r}, 'w')"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    said = gpu_check.run_until([sys.executable, "-c", code], time.time() + 1, tmp_path / "log")
    assert said.startswith("stopped at its time limit")
    time.sleep(4)
    assert not mark.exists()


def test_a_stage_that_fails_is_a_problem_and_the_others_run(tmp_path, monkeypatch, capsys):
    def start(command, deadline, log):
        name = command[command.index("--stage") + 1]
        return "error: exit status 3 after 1 s: no" if name == "equality" else "1 s"

    monkeypatch.setattr(gpu_check, "run_until", start)
    out = tmp_path / "out.json"
    words = ["--device", "cpu", "--tiny", "--out", str(out), "--work", str(tmp_path)]
    assert gpu_check.main([*words, "--stages", "environment", "equality", "kernels"]) == 1
    stages = json.loads(out.read_text())["stages"]
    assert stages["kernels"] == stages["environment"] == "1 s"
    assert "1 problem. File to send:" in capsys.readouterr().out
    out.unlink()
    assert gpu_check.main([*words, "--seconds", "1", "--stages", "kernels"]) == 0
    assert "skipped" in json.loads(out.read_text())["stages"]["kernels"]


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "_card", str)
    with pytest.raises(SystemExit) as ended:
        gpu_check.main([])
    assert ended.value.code == 2
    assert "torch finds no GPU" in capsys.readouterr().err
