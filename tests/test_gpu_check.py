"""ndem_ocp.bench.gpu: a dry run on the CPU, deadlines, one file with every result."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import sys
import time
from argparse import Namespace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from fairchem.core.common.utils import radius_graph_pbc

from conftest import ROOT
from ndem_ocp.bench.batches import open_data, read_batches
from ndem_ocp.bench.clock import Timing
from ndem_ocp.bench.gpu import check as gpu_check
from ndem_ocp.bench.gpu import comparing, consistency, equality, kernels, processes, step_times
from ndem_ocp.bench.gpu.results import Check, Results
from ndem_ocp.testing.precision import default_dtype


@pytest.fixture
def stage(tmp_path, demo_data):
    """Run a stage in this process; gives its part of the file."""
    (tmp_path / "ndem-small").symlink_to(demo_data)

    def run(name: str, seconds: float = 500, problems: int = 0):
        check = Check("cpu", time.time() + seconds, tmp_path, tiny=True)
        out = tmp_path / "out.json"
        importlib.import_module(f"ndem_ocp.bench.gpu.{name}").run(check, Results(out, name))
        found = json.loads(out.read_text())
        assert len(gpu_check._errors(found)) == problems
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
    assert len(found["edges"]) == 4
    assert all(
        each["not fairchem's"] == each["rattled, not fairchem's"] == each["rattled, not the CPU's"]
        == 0 < each["rattled, edges"]
        for each in found["edges"].values()
    )  # fmt: skip
    for name in ("upstream", "ours"):
        single = found["precisions, error to float64"][name]["fp32"]
        assert single.pop("other edges") == 0
        assert max(single.values()) < 1e-3


def test_rattled_structures_have_the_same_edges_in_all_precisions(demo_data):
    """In these symmetric slabs, before that, rounding chooses among equally far neighbors."""
    batch = read_batches(open_data(demo_data / "train"), 4, 1).batches[0]

    def edges(batch, dtype):
        batch = batch.clone()
        batch.pos = batch.pos.to(dtype)
        with default_dtype(dtype):
            return equality.keys(radius_graph_pbc(batch, 12.0, 20, True))

    def differing(batch):
        return len(edges(batch, torch.float32) ^ edges(batch, torch.float64))

    assert differing(batch) > 0
    assert differing(comparing.rattled(batch)) == 0
    moved = comparing.rattled(batch).pos - batch.pos
    assert 0.01 < moved.norm(dim=1).median() < 0.2
    assert torch.equal(comparing.rattled(batch).pos, comparing.rattled(batch).pos)


def test_consistency(stage):
    found = stage("consistency")
    assert len(found["training steps"]["cpu"]) == 5
    assert set(found["kernels, to torch's code"]) == {"fp32", "tf32", "bf16"}
    assert found["kernels in use"] == {}  # on a CPU
    twice = found["the same step twice"]
    assert set(twice) == {"kernels", "torch's code", "task.deterministic"}
    assert all(error == 0 for each in twice.values() for error in each.values())


def test_one_check_that_fails_does_not_take_the_others_with_it(stage, monkeypatch):
    def broken(*args):
        raise ValueError("broken")

    monkeypatch.setattr(consistency, "_in_use", broken)
    monkeypatch.setattr(consistency, "deterministic", broken)
    monkeypatch.setattr(consistency, "training_steps", broken)
    found = stage("consistency", problems=3)
    assert found["kernels in use"] == found["training steps"] == {"error": "ValueError: broken"}
    assert set(found["kernels, to torch's code"]) == {"fp32", "tf32", "bf16"}
    assert found["the same step twice"]["torch's code"]["energy"] == 0


def test_step_times_and_kernels(stage):
    found = stage("step_times")
    (label, arms), (inference, times) = (*found["31M"].items(), *found["inference"].items())
    assert label == inference == f"fp32, batch 1, {arms['atoms'][0]} atoms"
    assert arms["upstream"]["to upstream"] == 1
    assert arms["ndem"]["edges"] == 2 * arms["plain"]["edges"]
    assert arms["instead"]["edges"] == arms["plain"]["edges"]
    assert arms["ndem, torch's code"]["edges"] == arms["ndem"]["edges"]
    assert 0 < arms["plain"]["submitted after, ms"] <= arms["plain"]["ms"]
    assert {"plain", "plain, torch's code"} <= set(times)
    assert times["plain"] > 0
    found = stage("kernels")
    assert found["ndem"]["step"]["operations"] > found["plain"]["step"]["operations"] > 0
    assert found["upstream"]["longest operations"][0]["ms"] > 0


class OneArm:
    """A bench whose steps take as long as they are told to."""

    def __init__(self, timings):
        self.timings, self.too_large, self.taken = timings, {}, []

    def batches(self, size):
        return SimpleNamespace(atoms=[10 * size, 11 * size, 12 * size])

    def arm(self, name):
        return SimpleNamespace(edges=7)

    def step(self, label, kind, batches, number):
        self.taken.append((label, number))
        seconds = self.timings[label]
        if callable(seconds):
            seconds = seconds(number)
        if seconds is None:
            return None
        return Timing(seconds, seconds, {"forward": seconds}, seconds / 2), {"peak, GiB": number}


def steps_of(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(step_times, "WARM_UP", 1)
    check = Check("cpu", time.time() + 500, tmp_path, tiny=False)
    return step_times.Steps(check, Results(tmp_path / "out.json", "step_times"), bench)


def measured(tmp_path):
    return json.loads((tmp_path / "out.json").read_text())["step_times"]["31M"]


def test_ratios_are_of_the_same_round_and_what_was_measured_before_stays(tmp_path, monkeypatch):
    timings = {"upstream": lambda number: 1.0 + number, "plain": lambda number: 0.5 + number / 2}
    timings |= {"ndem": 0.9, "instead": 0.4}
    bench = OneArm(timings)
    steps = steps_of(bench, tmp_path, monkeypatch)
    steps.measure("31M", "tf32", 8, 3)
    steps.measure("31M", "tf32", 8, 2, ("upstream", "instead"))
    ((label, found),) = measured(tmp_path).items()
    assert label == "tf32, batch 8, 88 atoms"
    assert found["atoms"] == [80, 88, 96]
    assert found["plain"]["to upstream"] == 0.5
    assert found["plain"]["ms"] == pytest.approx(1500)
    assert found["upstream"]["rounds"] == found["ndem"]["rounds"] == 3
    assert found["instead"]["rounds"] == 2
    assert found["ndem"]["peak, GiB"] == 3
    assert found["ndem"]["submitted after, ms"] == pytest.approx(450)
    assert [label for label, number in bench.taken[3:6]] == ["plain", "ndem", "upstream"]


def test_an_arm_without_enough_memory_is_left_out_from_then_on(tmp_path, monkeypatch):
    bench = OneArm({"upstream": None, "plain": 1.0, "ndem": 2.0})
    steps = steps_of(bench, tmp_path, monkeypatch)
    for size in (16, 32):
        steps.measure("31M", "tf32", size, 2)
        found = measured(tmp_path)[f"tf32, batch {size}, {11 * size} atoms"]
        assert found["out of memory"] == ["upstream"]
        assert found["plain"]["ms"] == 1000
        assert "to upstream" not in found["plain"]
    assert [label for label, _ in bench.taken].count("upstream") == 1
    steps.measure("31M", "bf16", 16, 2)  # needs less
    assert [label for label, _ in bench.taken].count("upstream") == 2
    assert [label for label, _ in bench.taken][1:7] == [*["plain"] * 3, *["ndem"] * 3]


def test_an_error_leaves_what_was_measured_before_it(tmp_path, monkeypatch):
    def fails(number):
        if number == 2:
            raise RuntimeError("lost")
        return 1.0

    bench = OneArm({"upstream": 1.0, "plain": 0.5, "ndem": fails})
    steps_of(bench, tmp_path, monkeypatch).measure("31M", "tf32", 8, 5)
    (found,) = measured(tmp_path).values()
    assert found["error"] == "RuntimeError: lost"
    assert found["plain"]["to upstream"] == 0.5


def test_every_arm_starts_some_round():
    labels = ("a", "b", "c")
    assert step_times.order(labels, 2, False) == [
        *(("a", 0), ("b", 0), ("c", 0)), *(("b", 1), ("c", 1), ("a", 1)),
    ]  # fmt: skip
    assert step_times.order(labels, 2, True)[:3] == [("a", 0), ("a", 1), ("b", 0)]


def event(name, kind="CUDA", microseconds=1.0, annotation=False):
    return SimpleNamespace(
        name=name, device_type=f"DeviceType.{kind}", is_user_annotation=annotation,
        time_range=SimpleNamespace(elapsed_us=lambda: microseconds),
    )  # fmt: skip


def test_ranges_of_annotations_are_not_kernels():
    events = [
        event("aten::mm", "CPU", 9.0), event("Optimizer.step#AdamW.step", "CPU", 50.0, True),
        event("Optimizer.step#AdamW.step", "CUDA", 40.0, True), event("gemm", "CUDA", 4.0),
        event("Memcpy HtoD", "CUDA", 2.0), event("gemm", "CUDA", 3.0),
    ]  # fmt: skip
    found = kernels.kernels_of(events)
    assert [each.name for each in found] == ["gemm", "Memcpy HtoD", "gemm"]
    assert kernels.longest(found) == [
        {"name": "gemm", "calls": 2, "ms": 0.007},
        {"name": "Memcpy HtoD", "calls": 1, "ms": 0.002},
    ]


def test_an_annotation_is_known_in_a_profile():
    with torch.profiler.profile() as recorded, torch.profiler.record_function("mine"):
        torch.ones(3) + 1
    known = {each.name: each.is_user_annotation for each in recorded.events()}
    assert known["mine"]
    assert not known["aten::add"]


def test_places_of_waits_have_no_folders_of_this_machine():
    assert kernels._in_package(f"{ROOT}/fairchem_kit/a.py") == "fairchem_kit/a.py"
    assert kernels._in_package("/home/x/lib/python3.12/site-packages/b/c.py") == "b/c.py"


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
    with out.guarded("x"):
        raise ValueError("and this")
    assert json.loads(out.path.read_text())["a"]["x"]["y"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def write_one_result(path, number):
    out = Results(path, f"stage {number}")
    for key in range(20):
        out.put(key, number)


def test_stages_that_run_together_lose_no_results(tmp_path):
    path = tmp_path / "out.json"
    with multiprocessing.get_context("fork").Pool(3) as pool:
        pool.starmap(write_one_result, [(path, number) for number in range(3)])
    found = json.loads(path.read_text())
    assert len(found) == 3
    assert all(len(each) == 20 for each in found.values())


@pytest.fixture
def started(tmp_path):
    """Start a process as a stage's; all are killed afterwards."""
    stages = []

    def start(code: str, name: str = "equality") -> processes.Stage:
        args = Namespace(work=tmp_path)
        stages.append(processes.Stage(name, args, [sys.executable, "-u", "-c", code]))
        return stages[-1]

    yield start
    for stage in stages:
        stage.kill()


def wait_for(stage, seconds=20):
    end = time.time() + seconds
    while not stage.ended():
        assert time.time() < end
        time.sleep(0.02)
    return stage.outcome


def test_a_stage_ends_at_its_deadline_with_all_it_started(tmp_path, started):
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(4); open({str(mark)!r}, 'w')"
    stage = started(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])")
    stage.begin(time.time() + 1)
    assert wait_for(stage).startswith("stopped at its time limit")
    time.sleep(4)
    assert not mark.exists()


GATE = """
import sys
from ndem_ocp.bench.gpu.processes import Gate
gate = Gate()
print(gate.wait(), gate.waiting())
while gate.waiting():
    pass
print("deadline", float(gate.wait()))
sys.exit(3)
"""


def test_a_stage_prepares_at_the_first_word_and_begins_at_the_second(tmp_path, started):
    stage = started(GATE)
    stage.may_prepare()
    end = time.time() + 20
    while "prepare" not in stage.own.read_text() and time.time() < end:
        time.sleep(0.02)
    assert stage.own.read_text() == "prepare True\n"
    stage.begin(time.time() + 20)
    assert wait_for(stage).startswith("error: exit status 3")
    words = (tmp_path / "log").read_text().split()
    assert words[:3] == ["prepare", "True", "deadline"]
    assert float(words[3]) == pytest.approx(time.time() + 18, abs=10)


def test_a_stage_ends_if_the_main_process_does(started):
    stage = started(GATE)
    stage.process.stdin.close()
    assert stage.process.wait(20) == 1
    assert "the main process has ended" in stage.own.read_text()


def test_a_stage_that_failed_before_its_turn_is_a_problem(started):
    stage = started("raise SystemExit('no such thing')")
    stage.process.wait(20)
    stage.begin(time.time() + 20)
    assert wait_for(stage).endswith("no such thing")


class Ends:
    """A stage that ends when its turn comes."""

    turns: ClassVar[list[str]] = []

    def __init__(self, name, args):
        self.name = name
        self.outcome = "error: exit status 3 after 1 s: no" if name == "equality" else "1 s"

    def may_prepare(self):
        Ends.turns.append(f"{self.name} prepares")

    def begin(self, deadline):
        Ends.turns.append(self.name)

    def ended(self):
        return True

    def kill(self):
        pass


def test_a_stage_that_fails_is_a_problem_and_the_others_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "Stage", Ends)
    out = tmp_path / "out.json"
    words = ["--device", "cpu", "--tiny", "--out", str(out), "--work", str(tmp_path)]
    assert gpu_check.main([*words, "--stages", "environment", "equality", "kernels"]) == 1
    stages = json.loads(out.read_text())["stages"]
    assert stages["kernels"] == stages["environment"] == "1 s"
    assert Ends.turns[:4] == ["environment"] + [
        f"{name} prepares" for name in ("environment", "equality", "kernels")
    ]
    assert "1 problem. File to send:" in capsys.readouterr().out
    out.unlink()
    assert gpu_check.main([*words, "--seconds", "1", "--stages", "kernels"]) == 0
    assert "skipped" in json.loads(out.read_text())["stages"]["kernels"]


def test_stages_that_time_nothing_run_together():
    names = ["environment", "equality", "step_times", "whole_run", "kernels"]
    assert gpu_check._turns(names) == [
        ["environment"], ["equality", "whole_run"], ["step_times"], ["kernels"],
    ]  # fmt: skip
    assert gpu_check._turns(["kernels"]) == [["kernels"]]


@pytest.mark.timeout(300)
def test_the_command_runs_stages_in_processes_of_their_own(tmp_path):
    out = tmp_path / "out.json"
    words = ["--device", "cpu", "--tiny", "--out", str(out), "--work", str(tmp_path / "work")]
    assert gpu_check.main([*words, "--stages", "environment", "kernels"]) == 0
    found = json.loads(out.read_text())
    assert found["kernels"]["ndem"]["step"]["ms"] > 0
    assert set(found["stages"]) == {"environment", "kernels"}
    log = (tmp_path / "work" / "log").read_text()
    assert "environment, " in log
    assert "kernels, " in log


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "_card", str)
    with pytest.raises(SystemExit) as ended:
        gpu_check.main([])
    assert ended.value.code == 2
    assert "torch finds no GPU" in capsys.readouterr().err
