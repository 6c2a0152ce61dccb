"""Jobs: who starts them again, how they are submitted, what is said of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conftest import ROOT
from fairchem_kit.launch import exit_codes, slurm, status
from fairchem_kit.launch.errors import LaunchError
from fairchem_kit.launch.record import Record
from fairchem_kit.launch.requeue import decide
from fairchem_kit.launch.slurm import JobState
from fairchem_kit.launch.submit import minutes
from fairchem_kit.launch.tasks import read_manifest
from fairchem_kit.units.metrics import unit_of
from ndem_ocp.cli import build_parser, main

SMALL = str(ROOT / "configs/oc20/small_ndem.yml")
TABLE4 = str(ROOT / "configs/md17/sweeps/table4.yml")


def ended(tmp_path, code, job, error=None, most=2, checkpoint=None):
    record = Record(tmp_path, "run")
    if error:
        record.fail("now", 1, error)
    if checkpoint is not None:
        folder = tmp_path / "checkpoints" / "run"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints.json").write_text(f'{{"newest": {{"step": {checkpoint}}}}}')
    return decide(code, job, record, "now", most)


RUNNING = JobState("RUNNING", "None")


@pytest.mark.parametrize(
    ("code", "job", "requeue", "state"),
    [
        (0, RUNNING, False, None),
        (exit_codes.STOPPED, RUNNING, True, "requeued"),  # time limit, preemption with grace
        (exit_codes.STOPPED, JobState("COMPLETING", "None"), False, None),  # requeue, scancel
        (exit_codes.STOPPED, JobState("CANCELLED", "None"), False, None),
        (exit_codes.STOPPED, JobState("COMPLETING", "TimeLimit"), True, "requeued"),
        (137, RUNNING, True, "requeued"),
        (exit_codes.LOST_RANK, RUNNING, True, "requeued"),
        (137, JobState("COMPLETING", "None"), False, None),
        (137, None, True, "requeued"),
        (exit_codes.REFUSED, RUNNING, False, "failed"),
        (exit_codes.ERROR, RUNNING, False, "failed"),
    ],
)
def test_which_exits_are_requeued(tmp_path, code, job, requeue, state):
    found = ended(tmp_path, code, job)
    assert (found.requeue, found.state) == (requeue, state)


def test_an_error_of_one_rank_outweighs_the_death_of_the_others(tmp_path):
    found = ended(tmp_path, 137, RUNNING, error=ValueError("the cause"))
    assert (found.requeue, found.state) == (False, "failed")
    assert "the cause" in found.why


def test_restarts_without_progress_end(tmp_path):
    for _ in range(2):
        assert ended(tmp_path, 137, RUNNING, checkpoint=10).requeue
    assert not ended(tmp_path, 137, RUNNING, checkpoint=10).requeue
    assert ended(tmp_path, 137, RUNNING, checkpoint=20).requeue  # a new checkpoint: new patience
    ended(tmp_path, exit_codes.STOPPED, RUNNING, checkpoint=20)
    found = ended(tmp_path, exit_codes.STOPPED, RUNNING, checkpoint=20)
    assert "time limit is too short" in found.why


def test_progress_is_seen_without_a_list_of_checkpoints(tmp_path):
    record = Record(tmp_path, "run")
    assert record.progress() == 0
    folder = tmp_path / "checkpoints" / "run"
    folder.mkdir(parents=True)
    (folder / "checkpoint.pt").write_text("")
    os.utime(folder / "checkpoint.pt", (5, 5))
    assert record.progress() == 5


@pytest.mark.parametrize(
    ("text", "count"),
    [("90", 90), ("1:30", 2), ("2:00:00", 120), ("1-0", 1440), ("2-1:30", 2970), ("0:00:01", 1)],
)
def test_times_as_slurm_writes_them(text, count):
    assert minutes(text) == count
    with pytest.raises(LaunchError, match="D-H:M:S"):
        minutes(f"{text}h")


def test_submit_needs_slurm(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["submit", SMALL, "--out", str(tmp_path / "out")]) == 2
    assert "sbatch was not found" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_shows_the_job_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    out = tmp_path / "out"
    words = ["--sweep", TABLE4, "--out", str(out), "--nodes", "2", "--ranks-per-node", "4"]
    words += [
        "--time",
        "2-0",
        "--partition",
        "p",
        "--mem-gb",
        "1.5",
        "--account",
        "a",
        "--qos",
        "q",
    ]
    words += ["--array-parallelism", "3", "--signal-delay", "60", "--sbatch", "constraint=a100"]
    words += ["--setup", "module load cuda", "--seeds", "1", "2", "--dry-run"]
    assert main(["submit", *words, "--", "optim.max_epochs=3"]) == 0
    shown = capsys.readouterr().out
    for line in (
        "--array=0-9%3", "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--time=2880",
        "--partition=p", "--mem=1536MB", "--account=a", "--qos=q", "--signal=USR2@60",
        "--constraint=a100", "--requeue",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in shown, line
    assert "module load cuda" in shown
    assert "--kill-on-bad-exit=1" in shown
    assert shown.count("# task ") == 10
    assert "--task.ndem.coefficient=0.1 --optim.max_epochs=3" in shown
    assert not out.exists()
    words = ["submit", SMALL, "--cpu", "--dry-run", "--out", str(out)]
    assert main([*words, "--", "optim.num_workers=3"]) == 0
    said = capsys.readouterr()
    assert "gpus" not in said.out
    assert "#SBATCH --cpus-per-task=4\n" in said.out  # the rank and its three data workers
    assert "Overwritten" not in said.err
    assert main([*words, "--cpus-per-task", "2"]) == 0
    assert "#SBATCH --cpus-per-task=2\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "either CONFIG or --sweep"),
        ([SMALL, "--sweep", TABLE4], "either CONFIG or --sweep"),
        ([SMALL, "--arms", "x"], "--arms needs --sweep FILE"),
        (["--sweep", TABLE4, "--arms", "x"], "has no arm 'x'"),
        ([SMALL, "--time", "soon"], "--time soon"),
        (["nowhere.yml"], "no such file"),
    ],
)
def test_submit_names_what_does_not_fit(words, problem, tmp_path, capsys):
    assert main(["submit", *words, "--dry-run", "--out", str(tmp_path / "out")]) == 2
    assert problem in capsys.readouterr().err


def manifest_in(folder: Path) -> None:
    """What ndem submit would have written."""
    from fairchem_kit.launch.submit import manifest_of

    args = build_parser().parse_args(["submit", "--sweep", TABLE4, "--out", str(folder)])
    manifest = manifest_of(args)
    manifest.name_runs(None)
    for task in manifest.tasks:
        task.job = f"9_{task.index}"
    manifest.write()


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    manifest_in(tmp_path)
    manifest = read_manifest(tmp_path)
    assert manifest.tasks[1].name == "coefficient=0.1-seed0"
    assert len({task.run_id for task in manifest.tasks}) == 15
    assert len({task.run_dir for task in manifest.tasks}) == 15
    again = read_manifest(tmp_path)
    again.name_runs(manifest)
    assert [t.run_id for t in again.tasks] == [t.run_id for t in manifest.tasks]
    again.tasks[3].overrides = ["--x=1"]
    with pytest.raises(LaunchError, match="use another --out"):
        again.name_runs(manifest)
    (tmp_path / "tasks.json").write_text("{}")
    with pytest.raises(LaunchError, match="not a list of tasks written by ndem submit"):
        read_manifest(tmp_path)


def test_status_without_slurm(tmp_path, monkeypatch, capsys):
    manifest_in(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    tasks = read_manifest(tmp_path).tasks
    Record(tasks[1].run_dir, tasks[1].run_id).update(
        state="running", step=30, total=100, metric="forces_mae", unit="eV/A", best=0.25,
        starts=2, job="9_1",
    )  # fmt: skip
    failed = Record(tasks[2].run_dir, tasks[2].run_id)
    failed.begin("x")
    failed.update(state="running", job="9_2")
    failed.fail("x", 0, ValueError("misspelt"))
    assert main(["status", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "15 tasks: 13 not started, 1 running, 1 failed" in lines[0]
    assert "best forces_mae (eV/A)" in lines[1]
    assert lines[3].split()[2:7] == ["9_1", "running", "1", "30/100", "0.25"]
    assert "task 2: ValueError: misspelt" in lines[-2]
    assert main(["status", str(tmp_path / "nothing")]) == 2


def test_status_of_runs_with_different_metrics_names_each(tmp_path, capsys):
    for name, metric, unit in (("a", "forces_mae", "eV/A"), ("b", "gap_mae_meV", "meV")):
        Record(tmp_path / name, "run").update(metric=metric, unit=unit, best=0.25)
    assert main(["status", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "0.25 forces_mae (eV/A)" in out
    assert "0.25 gap_mae_meV (meV)" in out


@pytest.mark.parametrize(
    "content", ["", "[1, 2]", '{"state": 3, "step": "x", "best": "low", "updated": "now"}',
                '{"starts": "two", "total": "many", "metric": 7, "best": NaN}'],
)  # fmt: skip
def test_a_damaged_status_file_does_not_hide_the_run(tmp_path, capsys, content):
    folder = tmp_path / "checkpoints" / "run"
    folder.mkdir(parents=True)
    (folder / "checkpoints.json").write_text('{"newest": {"step": 7}}')
    (tmp_path / "status").mkdir()
    (tmp_path / "status" / "run.json").write_text(content)
    assert main(["status", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "1 not recorded" in out
    assert "7/?" in out


@pytest.mark.parametrize(
    ("metric", "unit"),
    [
        ("forces_mae", "kcal/mol/A"),
        ("energy_mae", "eV"),
        ("gap_mae", "eV"),
        ("gap_mae_meV", "meV"),
        ("forces_mse", ""),
        ("forces_cosine_similarity", ""),
        ("energy_forces_within_threshold", ""),
        ("stress_mae", ""),
    ],
)
def test_the_unit_of_a_metric(metric, unit):
    outputs = {
        "energy": {},
        "forces": {"unit": "kcal/mol/A"},
        "gap": {"unit": "eV", "report_unit": "meV"},
    }
    assert unit_of(metric, outputs) == unit


@pytest.mark.parametrize(
    ("record", "now", "state"),
    [
        ({}, "PENDING", "queued"),
        ({}, "RUNNING", "starting"),
        ({"state": "running"}, "RUNNING", "running"),
        ({"state": "requeued"}, "PENDING", "requeued"),
        ({"state": "stopped"}, "PENDING", "preempted, requeued"),
        ({"state": "running"}, "PENDING", "preempted, requeued"),
        ({"state": "running"}, "CANCELLED", "cancelled"),
        ({"state": "running"}, "TIMEOUT", "timed out"),
        ({"state": "finished"}, None, "finished"),
        ({"state": "failed"}, "COMPLETING", "failed"),
        ({"state": "running"}, None, "gone"),
        ({"state": "stopped"}, None, "stopped"),
    ],
)
def test_states(record, now, state):
    assert status.state_of(record, "9_1", {"9_1": now} if now else {}, {}) == state
    assert status.state_of(record, "9_1", {}, {"9_1": now} if now else {}) == state


def test_requeue_belongs_to_a_job(monkeypatch, capsys):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert main(["requeue", "137", SMALL]) == 2
    assert "batch script" in capsys.readouterr().err


def test_requeue_keeps_sruns_code_and_the_record(tmp_path, monkeypatch, capsys):
    for key in ("SLURM_JOB_ID", "SLURM_JOB_NAME"):
        monkeypatch.setenv(key, "77")
    monkeypatch.setattr(slurm, "job_state", lambda job: RUNNING)
    calls = []
    monkeypatch.setattr(slurm, "requeue", lambda job: calls.append(job))
    words = [SMALL, "--run-dir", str(tmp_path), "--seed", "3"]
    assert main(["requeue", "137", *words]) == 137
    assert calls == ["77"]
    assert Record(tmp_path, "77-77").read()["state"] == "requeued"
    assert main(["requeue", "2", *words]) == 2
    assert Record(tmp_path, "77-77").read()["state"] == "failed"
    monkeypatch.setattr(slurm, "requeue", lambda job: "Requested operation is disabled")
    assert main(["requeue", "137", *words]) == 137
    assert "is disabled" in Record(tmp_path, "77-77").read()["error"]
