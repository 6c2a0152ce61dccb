"""The tasks of a sweep, and the list of submitted ones: FOLDER/tasks.json."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fairchem_kit.atomic_files import read_json, write_json
from fairchem_kit.launch.command import TrainCommand
from fairchem_kit.launch.errors import LaunchError
from fairchem_kit.launch.record import safe_id
from fairchem_kit.launch.sweep_file import Sweep, run_directory, runs_of

MANIFEST = "tasks.json"


@dataclass
class Task:
    """One run of a sweep.

    Attributes:
        index: from 0, seed by seed. name: arm and seed. run_dir: its run directory. options:
            fairchem's. overrides: ``--key=value`` words. run_id: its id, the same after restarts
            ("" until submitted).
        job: SLURM's ``ARRAY_TASK`` or id, "" until submitted.
    """

    index: int
    name: str
    run_dir: Path
    options: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    run_id: str = ""
    job: str = ""


def tasks_of(sweep: Sweep, out: Path, seeds: Sequence[int]) -> list[Task]:
    """Every arm with every seed, in the order and the directories of ``ndem sweep``.

    Raises:
        SweepError: two of them would have the same directory.
    """
    return [
        Task(
            index=index,
            name=safe_id(f"{arm}-seed{seed}"),
            run_dir=run_directory(out, arm, seed),
            options=["--seed", str(seed), "--identifier", arm],
            overrides=[f"--{key}={value}" for key, value in sweep.arms[arm].items()],
        )
        for index, (arm, seed) in enumerate(runs_of(sweep.path, out, sweep.arms, seeds))
    ]


@dataclass
class Manifest:
    """The tasks submitted to ``folder``.

    Attributes:
        name: of the sweep, and the W&B group. config: YAML file. cpu: without accelerators.
            max_restarts: allowed restarts in a row without a new checkpoint.
    """

    folder: Path
    name: str
    config: Path
    cpu: bool
    max_restarts: int
    tasks: list[Task]

    def command(self, index: int) -> TrainCommand:
        """The command of task ``index``."""
        task = self.tasks[index]
        return TrainCommand(
            config=self.config,
            run_dir=task.run_dir,
            run_id=task.run_id,
            cpu=self.cpu,
            group=self.name,
            options=list(task.options),
            overrides=list(task.overrides),
        )

    def write(self) -> None:
        tasks = [{**asdict(task), "run_dir": str(task.run_dir)} for task in self.tasks]
        value = {
            "name": self.name,
            "config": str(self.config),
            "cpu": self.cpu,
            "max_restarts": self.max_restarts,
            "tasks": tasks,
        }
        write_json(self.folder / MANIFEST, value)

    def name_runs(self, before: Manifest | None) -> None:
        """Give every task an id: that in ``before`` if the folder is submitted again.

        Raises:
            LaunchError: if ``before`` has other tasks.
        """
        if before is None:
            once = os.urandom(3).hex()  # sweeps with the same name must have different ids in W&B
            for task in self.tasks:
                task.run_id = safe_id(f"{self.name}-{task.name}-{once}")
            return
        if self._made_of() != before._made_of():
            raise LaunchError(
                f"{self.folder} has a sweep with other tasks or settings: use another --out, "
                "or remove it."
            )
        for task, old in zip(self.tasks, before.tasks):
            task.run_id, task.job = old.run_id, old.job

    def _made_of(self) -> list[Any]:
        return [
            str(self.config), self.cpu,
            *([t.name, str(t.run_dir), t.options, t.overrides] for t in self.tasks),
        ]  # fmt: skip


def read_manifest(folder: Path) -> Manifest | None:
    """The list of tasks in ``folder``, None if there is none.

    Raises:
        LaunchError: if it cannot be read.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    found = read_json(path) or {}
    try:
        tasks = [Task(**{**task, "run_dir": Path(task["run_dir"])}) for task in found["tasks"]]
        return Manifest(
            folder, found["name"], Path(found["config"]), found["cpu"], found["max_restarts"], tasks
        )
    except (KeyError, TypeError) as error:
        raise LaunchError(
            f"{path}: this is not a list of tasks written by ndem submit, or it is damaged."
        ) from error
