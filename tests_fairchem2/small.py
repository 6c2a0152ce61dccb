"""Runs of the shipped configurations at the smallest size, in this process."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import hydra
import torch
from fairchem.core._cli import get_hydra_config_from_yaml
from omegaconf import OmegaConf

from fairchem_kit.history.file import read_history

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "fairchem2"
BACKBONE = {
    "sphere_channels": 8,
    "hidden_channels": 8,
    "edge_channels": 8,
    "num_layers": 1,
    "num_distance_basis": 8,
    "cutoff": 4.0,
    "max_neighbors": 10,
}
NDEM = "runner.train_eval_unit.ndem"
SMALL = [
    "job.device_type=CPU",
    "job.debug=True",
    "steps=4",
    "max_atoms=60",
    "workers=0",
    "runner.evaluate_every_n_steps=100",
    "runner.callbacks=[]",
    "runner.train_eval_unit.print_every=100",
    *(f"model.backbone.{key}={value}" for key, value in BACKBONE.items()),
]
# Checkpoints take longer than steps of these models: only where they are asked for.
SAVING = (
    "runner.callbacks=[{_target_: fairchem.core.components.callbacks.TrainCheckpointCallback, "
    "checkpoint_every_n_steps: %d}]"
)
FINE_TUNED = [word for word in SMALL if not word.startswith("model.")]


def configs_for(data: Path, folder: Path) -> Path:
    """A copy of the configurations with the data set as ``data=demo``."""
    copied = folder / "configs"
    if not copied.exists():
        shutil.copytree(CONFIGS, copied)
        text = (data / "fairchem2.yaml").read_text().replace("val_id_src", "val_src")
        (copied / "data" / "demo.yaml").write_text(text)
    return copied


def config_of(name: str, data: Path, folder: Path, *overrides: str, small=None):
    """The canonical configuration, as the fairchem command makes it."""
    path = configs_for(data, folder) / name
    words = [*(SMALL if small is None else small), f"job.run_dir={folder / 'runs'}", *overrides]
    if not any("timestamp_id" in word for word in words):
        words.append("+job.timestamp_id=first")
    return get_hydra_config_from_yaml(str(path), words)


def run(config):
    """What the fairchem command does with it on one rank; the runner."""
    os.makedirs(config.job.metadata.log_dir, exist_ok=True)
    OmegaConf.save(config, config.job.metadata.config_path)
    torch.manual_seed(config.job.seed)
    runner = hydra.utils.instantiate(config.runner)
    runner.job_config = config.job
    runner.load_state(config.job.runner_state_path)
    runner.run()
    return runner


def train(name: str, data: Path, folder: Path, *overrides: str, small=None):
    """Train; (the unit, the history's training lines, the run's folder)."""
    config = config_of(name, data, folder, *overrides, small=small)
    unit = run(config).train_eval_unit
    lines = read_history(config.job.metadata.log_dir, "train")
    return unit, lines, Path(config.job.metadata.log_dir).parent


def without_times(lines):
    """History lines without what differs between two equal runs."""
    skip = ("time_s", "samples_per_second(approx)", "atoms_per_second(approx)")
    return [{k: v for k, v in line.items() if k not in skip} for line in lines]
