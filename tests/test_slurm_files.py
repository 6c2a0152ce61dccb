"""The files of slurm/ as a user starts them, on a real SLURM, with the edits that a user makes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT
from fairchem_kit.launch.sweep_file import read_sweep
from fairchem_kit.launch.tasks import tasks_of
from launching import LOGGER, record, wait_for, write_config
from ndem_ocp.cli import main
from reliability import observed
from slurm_cluster import Cluster
from test_molecules import TINY, springs
from test_slurm import slurm  # noqa: F401 (a fixture)

FILES = sorted(path.name for path in (ROOT / "slurm").glob("*.sbatch"))
ON_SLURM = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(4000)]


def on_slurm(test: Callable) -> Callable:
    for mark in ON_SLURM:
        test = mark(test)
    return test


def edited(name: str, folder: Path, partition: str, **options: str) -> Path:
    """A copy of slurm/``name`` for a small cluster without GPUs."""
    text = (ROOT / "slurm" / name).read_text()
    for key, value in {"partition": partition, "cpus-per-task": "1", **options}.items():
        text, count = re.subn(rf"(?m)^#SBATCH --{key}=.*$", f"#SBATCH --{key}={value}", text)
        assert count == 1, key
    text = re.sub(r"(?m)^#SBATCH --gpus-per-node=.*\n", "", text)
    text = text.replace(" --amp", "")
    text = re.sub(r"configs/oc20/\S+\.yml", str(folder / "run.yml"), text)
    text = text.replace("configs/md17", str(ROOT / "configs/md17"))
    (folder / name).write_text(text)
    return folder / name


def test_every_file_is_tried_here():
    text = Path(__file__).read_text()
    assert [name for name in FILES if f'"{name}"' not in text] == []


@pytest.mark.parametrize("name", FILES)
def test_every_file_saves_and_resumes(name):
    text = (ROOT / "slurm" / name).read_text()
    for part in (
        "#SBATCH --signal=USR2@120\n", "#SBATCH --requeue\n", "#SBATCH --open-mode=append\n",
        "trap : TERM\n", 'srun --kill-on-bad-exit=1 ndem train "${RUN[@]}"\n',
        'ndem requeue $? "${RUN[@]}"\n',
    ):  # fmt: skip
        assert part in text
    for config in re.findall(r"configs/\S+\.yml", text):
        assert (ROOT / config).is_file()
    assert f"`{name}`" in (ROOT / "slurm" / "README.md").read_text()


@pytest.mark.parametrize("table", ["table4", "table5"])
def test_arrays_of_tables_are_as_long_as_their_sweeps(table):
    sweep = read_sweep(ROOT / f"configs/md17/sweeps/{table}.yml")
    count = len(tasks_of(sweep, Path(), sweep.seeds))
    assert f"#SBATCH --array=0-{count - 1}\n" in (ROOT / f"slurm/{table}.sbatch").read_text()


@pytest.fixture(scope="module")
def folder(demo_data, tmp_path_factory) -> Path:
    """A directory to submit from: a small configuration, and MD17 data."""
    where = tmp_path_factory.mktemp("sbatch")
    write_config(where / "run.yml", demo_data, epochs=2)
    np.savez(where / "methanol.npz", **springs(40))
    sizes = ["--train", "24", "--val", "8", "--test", "8", "--no-progress"]
    out = str(where / "md17")
    assert main(["data", "md17", str(where / "methanol.npz"), "--out", out, *sizes]) == 0
    return where


def sbatch(slurm: Cluster, file: Path, *words: str) -> str:  # noqa: F811
    return slurm.run("sbatch", "--parsable", str(file), "--cpu", *words, cwd=file.parent).strip()


def finished_runs(folder: Path, runs: str, count: int) -> list[dict]:
    """The records of ``count`` runs below ``runs``, once all are finished."""

    def found() -> list[dict]:
        paths = [*folder.glob(f"{runs}/status/*.json"), *folder.glob(f"{runs}/*/status/*.json")]
        said = [json.loads(path.read_text()) for path in paths]
        assert not [one for one in said if one.get("state") == "failed"], said
        return said if [one.get("state") for one in said] == ["finished"] * count else []

    def logs() -> str:
        return "\n".join(f"{p.name}: {p.read_text()[-1500:]}" for p in folder.glob("*.out"))

    return wait_for(found, 1800, logs)


@on_slurm
def test_one_node_several_nodes_and_seeds(slurm, folder, capsys):  # noqa: F811
    two = {"ntasks-per-node": "2"}
    sbatch(slurm, edited("one_node.sbatch", folder, "main", **two))
    sbatch(
        slurm, edited("several_nodes.sbatch", folder, "main", nodes="2", **{"ntasks-per-node": "1"})
    )
    seeds = sbatch(slurm, edited("seeds.sbatch", folder, "main", array="0-1"), "optim.max_epochs=1")
    (one,) = finished_runs(folder, "runs/one_node", 1)
    (several,) = finished_runs(folder, "runs/several_nodes", 1)
    assert [one["ranks"], one["step"], several["ranks"], several["step"]] == [2, 20, 2, 20]
    both = finished_runs(folder, "runs/seeds", 2)
    assert sorted(said["job"] for said in both) == [f"{seeds}_0", f"{seeds}_1"]
    curves = []
    for seed in (0, 1):
        path = folder / f"runs/seeds/seed{seed}/logs/{LOGGER}/seed{seed}-{seeds}_{seed}"
        curves.append((path / "history.jsonl").read_text())
    assert curves[0] != curves[1]
    assert main(["status", str(folder / "runs/seeds")]) == 0
    assert "2 tasks: 2 finished" in capsys.readouterr().out
    observed(
        "slurm",
        "slurm/one_node.sbatch (two ranks), several_nodes.sbatch (two slurmd), seeds.sbatch",
        4,
        "all finished; every seed has its own directory and id",
        "nothing",
    )


@on_slurm
def test_tables_4_and_5(slurm, folder):  # noqa: F811
    small = [f"model.backbone.{key}={value}" for key, value in TINY.items()]
    data = [f"dataset.{split}.src={folder}/md17/{split}" for split in ("train", "val")]
    words = [*small, *data, "optim.max_epochs=2", "optim.num_workers=0", "optim.batch_size=8"]
    words += ["logger.name=ndem_ocp.HistoryLogger", "logger.inner=None"]
    for name, last in (("table4.sbatch", 14), ("table5.sbatch", 11)):
        file = edited(name, folder, "main", array=f"0,{last}")
        sbatch(slurm, file, *words)
    finished_runs(folder, "runs/table4", 2)
    finished_runs(folder, "runs/table5", 2)
    made = sorted(path.parent.name for path in folder.glob("runs/table*/*/status"))
    assert made == [
        "coefficient=0-seed0", "coefficient=100-seed2", "sigma_max=0.005-seed0",
        "sigma_max=0.5-seed2",
    ]  # fmt: skip


@on_slurm
def test_a_run_continues_after_a_preemption_with_a_grace_period(slurm, folder, monkeypatch):  # noqa: F811
    """SLURM does not start a job again that leaves by itself within its grace: we do."""
    job = sbatch(
        slurm,
        edited("preemptible.sbatch", folder, "spare", **{"ntasks-per-node": "2"}),
        "optim.max_epochs=4",
        "optim.checkpoint_every=1000",
    )
    run = (folder / "runs/preemptible", f"ndem-spare-{job}")
    wait_for(lambda: record(*run).get("step", 0) >= 5, 1800, "the job did not start")
    slurm.run("sbatch", "-p", "urgent", "--exclusive", "--nodes=2", "--wrap", "sleep 5", cwd=folder)
    (said,) = finished_runs(folder, "runs/preemptible", 1)
    assert (said["starts"], said["step"]) == (2, 40)
    log = (folder / f"ndem-spare-{job}.out").read_text()
    (saved,) = re.findall(r"Stopping after step (\d+), which is saved: SIGTERM", log)
    assert f"Continuing from step {saved} of " in log
    assert "stopped and saved; requeued" in log
    observed(
        "slurm",
        "preemption by a job of a higher partition, with grace (slurm/preemptible.sbatch)",
        1,
        f"stopped after step {saved}, saved, requeued by the batch script (SLURM counts a job that "
        "leaves within its grace as done), and finished",
        "nothing",
    )
