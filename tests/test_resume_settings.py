"""A killed run resumes exactly, for every schedule, optimizer, average and loader."""

from __future__ import annotations

import contextlib
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fairchem_kit.checkpoints import CheckpointStore
from fairchem_kit.training.resume.stopping import request_stop
from reliability import observed
from resuming import RUN, finish, launch, result, run_to_end, same_run, short_run
from test_resume import dying

Config = dict[str, Any]


def optim(remove: tuple[str, ...] = (), **changes: Any) -> Callable[[Config], None]:
    """An edit of the section ``optim``."""

    def edit(config: Config) -> None:
        for key in remove:
            del config["optim"][key]
        config["optim"].update(changes)

    return edit


def schedule(name: str | None, **settings: Any) -> Callable[[Config], None]:
    """One of torch's schedules, or with None fairchem's own, in place of EquiformerV2's."""
    named = {} if name is None else {"scheduler": name}
    gone = ("scheduler_params", *(("scheduler",) if name is None else ()))
    return optim(gone, **named, **settings)


SETTINGS = {
    "without moving average": optim(("ema_decay",)),
    "SGD with momentum": optim(optimizer="SGD", optimizer_params={"momentum": 0.9}),
    "checkpoints at the end of epochs": optim(checkpoint_every=-1),
    "fairchem's warm-up": schedule(
        None, warmup_steps=14, warmup_factor=0.2, lr_milestones=[100], lr_gamma=0.5
    ),
    "ReduceLROnPlateau": schedule("ReduceLROnPlateau", mode="min", factor=0.5, patience=0),
    "OneCycleLR": schedule("OneCycleLR", max_lr=0.003, total_steps=20),
    "no schedule": schedule("Null"),
    "data workers": optim(num_workers=1),
    "batches balanced by atoms": optim(load_balancing="atoms"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_killed_run_is_the_whole_run_again(demo_data, tmp_path, name):
    """Killed in step 15, in the third epoch; saved at 12, validated at 10 and 15."""
    config = short_run(demo_data, SETTINGS[name])
    whole = run_to_end(config, tmp_path / "whole")
    run = tmp_path / "run"
    run.mkdir()
    assert finish(launch(config, run, hook=dying("forward", 15)), run) == -signal.SIGKILL
    assert result(run)["newest"]["step"] == 12
    assert same_run(run_to_end(config, run), whole) == []
    observed(
        "checkpoints",
        f"kill -9 in the middle of an epoch, {name}",
        1,
        "resumed; weights, optimizer, schedule, generators and curves equal to the bit",
        "3 steps, done again",
    )


def test_a_stopped_run_keeps_the_momentum_that_its_schedule_has_moved(demo_data, tmp_path):
    """Saved after a whole step: the schedule is not stepped before the next one."""
    config = short_run(demo_data, SETTINGS["OneCycleLR"])
    whole = run_to_end(config, tmp_path / "whole")
    betas = {group["betas"] for group in whole["newest"]["optimizer"]["param_groups"]}
    assert betas != {(0.9, 0.999)}  # those of the configuration

    def stop(trainer):
        forward = trainer._forward

        def wrapped(batch):
            if trainer.step == 9 and trainer.model.training:
                request_stop("test")
            return forward(batch)

        trainer._forward = wrapped

    run = tmp_path / "run"
    run.mkdir()
    assert finish(launch(config, run, hook=stop), run) == 3
    assert same_run(run_to_end(config, run), whole) == []


def scaled(trainer) -> None:
    """Mixed precision's scaler, which fairchem makes on GPUs only; it grows every third step."""
    warnings.simplefilter(
        "ignore"
    )  # torch.autocast("cuda") without a GPU does nothing, and says so
    trainer.scaler = torch.GradScaler("cpu", init_scale=2.0, growth_interval=3)


def test_the_scaler_of_mixed_precision_is_resumed(demo_data, tmp_path):
    config = short_run(demo_data)
    folders = [tmp_path / "whole", tmp_path / "run"]
    for folder in folders:
        folder.mkdir()
    assert finish(launch(config, folders[0], hook=scaled), folders[0]) == 0

    def dies(trainer):
        scaled(trainer)
        dying("forward", 15)(trainer)

    assert finish(launch(config, folders[1], hook=dies), folders[1]) == -signal.SIGKILL
    assert result(folders[1])["newest"]["amp"]["scale"] == 2.0 * 2**4
    assert finish(launch(config, folders[1], hook=scaled), folders[1]) == 0
    whole, run = (result(folder) for folder in folders)
    assert whole["newest"]["amp"]["scale"] == 2.0 * 2**6
    assert same_run(run, whole) == []


def children(name: str) -> list[int]:
    """Processes called ``name`` that this one has started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            own, _, rest = (process / "stat").read_text().rpartition(")")
            if int(rest.split()[1]) == os.getpid() and own.endswith(f"({name}"):
                found.append(int(process.name))
    return found


def test_a_run_survives_the_end_of_wandbs_service(demo_data, tmp_path, monkeypatch):
    """SLURM sends SIGTERM to every process of a job; the run finishes its step and saves."""
    # set where an earlier test has used W&B in this process: its service is not the run's own
    monkeypatch.delenv("WANDB_SERVICE", raising=False)

    def wandb_alone(config):
        config["logger"] = {"name": "wandb", "project": "ndem-test"}

    def signal_all(trainer):
        signal.signal(signal.SIGTERM, lambda *_: request_stop("SIGTERM"))
        forward = trainer._forward

        def wrapped(batch):
            if trainer.step == 3:
                (service,) = children("wandb-core")
                for pid in (service, os.getpid()):
                    os.kill(pid, signal.SIGTERM)
                os.waitpid(service, 0)
            return forward(batch)

        trainer._forward = wrapped

    config = short_run(demo_data, wandb_alone)
    assert finish(launch(config, tmp_path, hook=signal_all), tmp_path) == 3
    newest = CheckpointStore(tmp_path / "checkpoints" / RUN).read_newest()
    assert newest is not None
    assert newest[1]["step"] == 3
    observed(
        "checkpoints",
        "SIGTERM to a run and to W&B's service at once, as SLURM sends it",
        1,
        "the step was finished and saved",
        "W&B's record of that step",
    )
