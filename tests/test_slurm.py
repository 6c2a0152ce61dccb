"""Runs on a real SLURM: arrays that are requeued, killed, timed out and robbed of their node."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import struct
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import yaml
from wandb.proto.wandb_internal_pb2 import Record, RunRecord

from fairchem_kit.launch.tasks import Manifest, read_manifest
from launching import LOGGER, assert_same_run, environment, record, wait_for, write_config
from ndem_ocp.cli import main
from reliability import observed
from slurm_cluster import Cluster, Unavailable, cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(4000)]

EPOCHS = 10  # long enough for SLURM to look at the time limit before the end
STEPS = 10 * EPOCHS  # with two ranks
EVERY = 5  # steps between checkpoints
DISTURB_AT = 12
WANDB = {"logger.inner": "wandb", "logger.project": "ndem-test"}  # offline
# files stand for them (gres.conf); the ranks compute on the CPU
GPUS = ("--sbatch", "gres=gpu:2", "--setup", "echo CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES")
ARMS = {"undisturbed": {}, "requeued": WANDB, "killed": {}, "timed-out": WANDB}


@pytest.fixture(scope="module")
def slurm():
    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(cluster(environment(NDEM_TEST_STEP_S="0.5")))
        except Unavailable as error:
            pytest.skip(str(error))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for key, value in running.environ.items():
            patch.setenv(key, value)
        yield running


@dataclass
class Runs:
    """Two submitted folders, and what each disturbed run had done when it was disturbed."""

    sweep: Manifest
    node: Manifest
    at: dict[str, int] = field(default_factory=dict)

    def of(self, name: str) -> tuple[Path, str]:
        tasks = [*self.sweep.tasks, *self.node.tasks]
        task = next(task for task in tasks if task.run_dir.name.startswith(name))
        return task.run_dir, task.run_id

    def said(self, name: str) -> dict:
        return record(*self.of(name))

    def resumed(self, name: str) -> list[tuple[int, int]]:
        """For each resume: the step after which the run went on, and how many it did again."""
        run_dir, run_id = self.of(name)
        lines = (run_dir / "logs" / LOGGER / run_id / "history.jsonl").read_text().splitlines()
        found, last = [], 0
        for line in map(json.loads, lines):
            if "resumed" in line:
                found.append((line["resumed"], last - line["resumed"]))
            last = line.get("step", last)
        return found


def submit(config: Path, folder: Path, *words: str) -> Manifest:
    """``ndem submit``, two gloo ranks for each task; the manifest that it wrote."""
    more = ["--cpu", "--ranks-per-node", "2", "--time", "60", "--signal-delay", "130"]
    given = [str(config)] if config.name == "run.yml" else ["--sweep", str(config)]
    args = ["submit", *given, "--out", str(folder), *more, *words]
    assert main([*args, "--", "--print-every=1"]) == 0
    return read_manifest(folder)


@pytest.fixture(scope="module")
def runs(slurm: Cluster, demo_data, tmp_path_factory) -> Runs:
    """Everything submitted, disturbed, and waited for."""
    folder = tmp_path_factory.mktemp("slurm")
    config = write_config(folder / "run.yml", demo_data, EPOCHS, checkpoint_every=EVERY)
    sweep = {
        "config": "run.yml",
        "test": "none",
        "metrics": ["forces_mae"],
        "arms": {**ARMS, "misspelt": {"task.ndem.sigma_maximum": 1}},
    }
    (folder / "faults.yml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    found = Runs(
        submit(folder / "faults.yml", folder / "sweep", "--sbatch", "nodelist=n1"),
        submit(config, folder / "node", "--sbatch", "nodelist=n2", *GPUS),
    )
    faults = {"requeued": requeue, "killed": kill, "timed-out": time_out, "run": cut_power}
    wait_for(lambda: disturb(slurm, found, faults), 1800, lambda: story(slurm, found))
    names = (*ARMS, "misspelt", "run")
    wait_for(
        lambda: all(found.said(name).get("state") in ("finished", "failed") for name in names),
        1800,
        lambda: story(slurm, found),
    )
    return found


def disturb(slurm: Cluster, runs: Runs, faults: dict) -> bool:
    """Do to each run what is meant for it once it is under way; whether all is done."""
    for name, fault in list(faults.items()):
        said = runs.said(name)
        if said.get("state") == "running" and said.get("step", 0) >= DISTURB_AT:
            fault(slurm, job_of(runs, name))
            runs.at[name] = runs.said(name)["step"]
            del faults[name]
    limited = job_of(runs, "timed-out")
    if "timed-out" in runs.at and slurm.states().get(limited) == "PENDING":
        slurm.run("scontrol", "update", f"JobId={limited}", "TimeLimit=60")
        runs.at["given time"] = 1
    return not faults and "given time" in runs.at


def job_of(runs: Runs, name: str) -> str:
    tasks = [*runs.sweep.tasks, *runs.node.tasks]
    return next(task.job for task in tasks if task.run_dir.name.startswith(name))


def requeue(slurm: Cluster, job: str) -> None:
    slurm.run("scontrol", "requeue", job)


def kill(slurm: Cluster, job: str) -> None:
    os.kill(slurm.rank_pids(job, 1)[0], signal.SIGKILL)


def time_out(slurm: Cluster, job: str) -> None:
    """Let 70 to 130 s be left: less than --signal-delay, so that the warning comes at once."""
    hours, minutes, seconds = map(int, slurm.field(job, "RunTime").split(":"))
    gone = hours * 3600 + minutes * 60 + seconds
    slurm.run("scontrol", "update", f"JobId={job}", f"TimeLimit={-(-(gone + 70) // 60)}")


def cut_power(slurm: Cluster, job: str) -> None:
    slurm.kill_node("n2")
    slurm.start_node("n2")


def story(slurm: Cluster, runs: Runs) -> str:
    """For a failure: what became of everything."""
    main(["status", str(runs.sweep.folder)])
    main(["status", str(runs.node.folder)])
    logs = [*runs.sweep.folder.glob("slurm_logs/*.out"), *runs.node.folder.glob("slurm_logs/*.out")]
    ends = [f"{log.name}:\n{log.read_text()[-1500:]}" for log in sorted(logs)]
    return f"{slurm.states()} {runs.at}\n" + "\n".join(ends)


def log_of(runs: Runs, name: str) -> str:
    job = job_of(runs, name)
    folder = (runs.node if name == "run" else runs.sweep).folder / "slurm_logs"
    return (folder / f"{job}_0_log.out").read_text()


def test_the_undisturbed_run_is_one_run(runs):
    said = runs.said("undisturbed")
    assert said["state"] == "finished"
    assert (said["starts"], said["step"], said["total"], said["ranks"]) == (1, STEPS, STEPS, 2)
    assert runs.resumed("undisturbed") == []


def test_a_requeued_task_continues_at_its_step(runs):
    said = runs.said("requeued")
    assert (said["state"], said["starts"]) == ("finished", 2)
    ((step, lost),) = runs.resumed("requeued")
    assert runs.at["requeued"] <= step < STEPS
    assert lost == 0
    assert f"Stopping after step {step}, which is saved: SIGTERM" in log_of(runs, "requeued")
    assert_same_run(runs.of("undisturbed"), runs.of("requeued"), STEPS)
    observed(
        "slurm",
        "scontrol requeue of an array task (two gloo ranks), as a preemption without grace",
        1,
        f"stopped after step {step}, saved, started again by SLURM; curve and weights equal an "
        "undisturbed run's to the bit",
        "nothing",
    )


def test_a_killed_rank_costs_the_steps_since_the_last_checkpoint(runs):
    said = runs.said("killed")
    assert (said["state"], said["starts"]) == ("finished", 2)
    ((step, lost),) = runs.resumed("killed")
    assert step % EVERY == 0
    assert 0 <= lost <= EVERY
    assert "a rank died; requeued" in log_of(runs, "killed")
    assert_same_run(runs.of("undisturbed"), runs.of("killed"), STEPS)
    observed(
        "slurm",
        "kill -9 of one of two ranks of an array task",
        1,
        "the other rank ended, the batch script requeued the task; curve and weights equal an "
        "undisturbed run's to the bit",
        f"steps computed twice: {lost} (a checkpoint every {EVERY})",
    )


def test_a_run_continues_after_its_time_limit(runs):
    said = runs.said("timed-out")
    assert (said["state"], said["starts"]) == ("finished", 2)
    ((step, lost),) = runs.resumed("timed-out")
    assert runs.at["timed-out"] <= step < STEPS
    assert lost == 0
    log = log_of(runs, "timed-out")
    assert f"Stopping after step {step}, which is saved: SIGUSR2" in log
    assert "stopped and saved; requeued" in log
    assert_same_run(runs.of("undisturbed"), runs.of("timed-out"), STEPS)
    observed(
        "slurm",
        "the time limit of an array task (SIGUSR2 before it)",
        1,
        f"stopped after step {step}, saved, requeued; curve and weights equal an undisturbed "
        "run's to the bit",
        "nothing",
    )


def test_a_failed_node_costs_the_steps_since_the_last_checkpoint(runs):
    said = runs.said("run")
    assert (said["state"], said["starts"]) == ("finished", 2)
    assert "ndem: srun ended" not in log_of(runs, "run")  # nobody was left to say it
    ((step, lost),) = runs.resumed("run")
    assert step % EVERY == 0
    assert 0 <= lost <= EVERY
    assert_same_run(runs.of("undisturbed"), runs.of("run"), STEPS)
    observed(
        "slurm",
        "node failure: slurmd, its steps and both ranks killed at once, the node back later",
        1,
        "SLURM started the job again, it went on from the newest checkpoint; curve and weights "
        "equal an undisturbed run's to the bit",
        f"steps computed twice: {lost} (a checkpoint every {EVERY})",
    )


def test_a_misspelt_key_is_not_tried_again(runs, slurm, capsys):
    said = runs.said("misspelt")
    assert said["state"] == "failed"
    assert "starts" in said
    assert said["starts"] == 1
    assert slurm.field(job_of(runs, "misspelt"), "Restarts") == "0"
    main(["status", str(runs.sweep.folder)])
    out = capsys.readouterr().out
    assert re.search(r"task 4: SettingsError: .*sigma_maximum", out)
    observed(
        "slurm",
        "a misspelt key in one arm of a sweep",
        1,
        "this task failed in its first seconds, was not restarted, and ndem status shows the error",
        "nothing: the other arms ran",
    )


def test_status_lists_the_tasks(runs, capsys):
    assert main(["status", str(runs.sweep.folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "5 tasks: 4 finished, 1 failed" in lines[0]
    assert re.search(rf"killed-seed0 .* finished +1 +{STEPS}/{STEPS} +0\.\d+", lines[4])
    assert main(["status", "--json", str(runs.node.folder)]) == 0
    (task,) = json.loads(capsys.readouterr().out)
    assert (task["state"], task["restarts"], task["step"]) == ("finished", 1, STEPS)
    assert (task["metric"], 0 < task["best"] < 1) == ("forces_mae", True)


def test_every_task_has_its_own_run_in_one_group(runs):
    checkpoints = [runs.of(arm) for arm in ARMS]
    configs = []
    for run_dir, run_id in checkpoints:
        path = run_dir / "checkpoints" / run_id / "checkpoint.pt"
        configs.append(torch.load(path, map_location="cpu", weights_only=False)["config"])
        assert [p.name for p in (run_dir / "checkpoints").iterdir()] == [run_id]
    assert len({config["cmd"]["timestamp_id"] for config in configs}) == len(ARMS)  # W&B's ids
    assert {config["logger"]["group"] for config in configs} == {"faults"}
    assert [config["cmd"]["identifier"] for config in configs] == list(ARMS)
    offline = {arm: wandb_runs(runs.of(arm)[0]) for arm in ("requeued", "timed-out")}
    for arm, starts in offline.items():
        assert [(run.run_id, run.run_group) for run in starts] == 2 * [(runs.of(arm)[1], "faults")]
    assert offline["requeued"][0].run_id != offline["timed-out"][0].run_id
    observed(
        "slurm",
        "tasks of an array that are requeued, with W&B (what it writes offline)",
        len(offline),
        "each is one W&B run over both of its starts, and all are in the sweep's group",
        "nothing",
    )


def wandb_runs(run_dir: Path) -> list[RunRecord]:
    """What W&B would send about the run, start by start: its file is a log of checksum, length,
    kind and message."""
    found = []
    for path in sorted(run_dir.glob("logs/*/*/wandb/offline-run-*/*.wandb")):
        content, place = path.read_bytes(), 7
        while place < len(content):
            (length,) = struct.unpack_from("<H", content, place + 4)
            record = Record.FromString(content[place + 7 : place + 7 + length])
            if record.HasField("run"):
                found.append(record.run)
                break
            place += 7 + length
    return found


def test_a_job_gets_the_gpus_that_it_asks_for(runs, slurm):
    assert slurm.field(job_of(runs, "run"), "TresPerNode").endswith("gpu:2")
    assert "CUDA_VISIBLE_DEVICES=0,1" in log_of(runs, "run")


def test_what_is_finished_is_not_submitted_again(runs, slurm, capsys):
    path = runs.node.folder.parent / "run.yml"
    submit(path, runs.node.folder, "--sbatch", "nodelist=n2", *GPUS)
    assert "The task is finished or queued" in capsys.readouterr().out
    with pytest.raises(AssertionError):  # ndem's exit status is 2
        submit(path, runs.node.folder, "--seeds", "7")
    assert "use another --out" in capsys.readouterr().err


def test_a_refused_submission_is_one_sentence(runs, tmp_path, capsys):
    path = runs.node.folder.parent / "run.yml"
    assert main(["submit", str(path), "--cpu", "--partition", "none", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "ndem: sbatch refused" in error
    assert "nvalid partition" in error
    assert main(["status", str(tmp_path)]) == 0
    assert "1 not started" in capsys.readouterr().out
