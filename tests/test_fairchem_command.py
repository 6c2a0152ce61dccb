"""The stock ``fairchem`` command with NDeM: training, validation, prediction, ranks, resume.

Every command is a process of its own, as users start it. A command needs seconds to import, so
the tests share their runs; a command that does not end in time is killed and fails its test.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import add_adsorbate, fcc111
from fairchem.core.common.relaxation.ase_utils import OCPCalculator
from fairchem.core.datasets import LmdbDataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from alone import TORCHS_PORT, alone
from conftest import tiny_config
from fairchem_kit.history.logger import find_history, read_history

pytestmark = pytest.mark.slow

FAIRCHEM = Path(sys.executable).with_name("fairchem")
TIMEOUT = 400  # seconds for one command; a quiet machine needs 10 to 25
STEPS = 10  # 40 structures in batches of four
EVAL_EVERY = 5
CHECKPOINT_EVERY = 6
NDEM_METRICS = {"ndem_loss", "ndem_share_of_loss", "ndem_noise_error_A", "ndem_sigma_A"}
VAL_METRICS = {"energy_mae", "forces_mae", "forces_cosine_similarity", "loss"}
FRAMES = 1e-4  # EquiformerV2 turns its edge frames at random, and its grid is not exact


@dataclass(frozen=True)
class Done:
    """A command that has ended. ``status`` is None if it had to be killed."""

    status: int | None
    output: str
    run_dir: Path

    def check(self) -> Done:
        assert self.status is not None, f"did not end within {TIMEOUT} s:\n{self.output[-4000:]}"
        assert self.status == 0, f"ended with {self.status}:\n{self.output[-4000:]}"
        return self

    def history(self, split: str) -> list[dict[str, Any]]:
        return read_history(find_history(self.check().run_dir), split)

    def only(self, pattern: str) -> Path:
        found = list(self.check().run_dir.glob(pattern))
        assert len(found) == 1, f"{pattern}: {found}"
        return found[0]


def run(command: list[Any], run_dir: Path) -> Done:
    """Run ``command`` in ``run_dir``; its whole process group is killed after TIMEOUT."""
    run_dir.mkdir()
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "NUMBA_DISABLE_JIT": "0",  # as users have it; conftest.py says why other tests do not
    }
    # A file and no pipe: a helper process that outlives the command must not keep us waiting.
    log = run_dir / "output.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=run_dir,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return Done(status, log.read_text(errors="replace"), run_dir)


@dataclass(frozen=True)
class Workspace:
    """The data, the configuration, and a place for run directories."""

    data: Path
    path: Path
    config: dict[str, Any]

    def fairchem(self, name: str, mode: str, *arguments: Any, **replace: Any) -> Done:
        """The command on the configuration with the top-level keys ``replace``, in ``name``/."""
        config_yml = self.path / f"{name}.yml"
        config_yml.write_text(yaml.safe_dump({**self.config, **replace}))
        run_dir = self.path / name
        fixed = ("--mode", mode, "--config-yml", config_yml, "--run-dir", run_dir)
        fixed += ("--identifier", name, "--cpu", "--print-every", 1)
        return run([FAIRCHEM, *fixed, *arguments], run_dir)


@pytest.fixture(scope="module")
def workspace(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    config = tiny_config(demo_data)
    config["logger"] = {"name": "ndem_ocp.HistoryLogger", "inner": "wandb", "project": "ndem-test"}
    config["optim"].update(
        eval_every=EVAL_EVERY,
        checkpoint_every=CHECKPOINT_EVERY,
        ema_decay=0.5,  # the default would still hold the untrained weights
    )
    return Workspace(demo_data, tmp_path_factory.mktemp("fairchem"), config)


def two_at_a_time(calls: dict[str, Callable[[], Done]]) -> dict[str, Done]:
    with ThreadPoolExecutor(2) as pool:
        futures = {name: pool.submit(call) for name, call in calls.items()}
        return {name: future.result() for name, future in futures.items()}


def fairchem_imports_the_package() -> bool:
    """Whether its list of plug-ins names this one, which short names in a configuration need."""
    include = Path(find_spec("fairchem.core").origin).parents[1] / "experimental/.include"
    return include.is_file() and "ndem_ocp_plugin" in include.read_text().split()


@pytest.fixture(scope="module")
def first(workspace: Workspace) -> dict[str, Done]:
    """The commands that need no other."""
    train = "--task.ndem.coefficient=0.5"
    misspelt = "--task.ndem.sigma_maks=0.1"
    trainer = "ndem" if fairchem_imports_the_package() else workspace.config["trainer"]
    replace = {"trainer": trainer, "logger": "tensorboard"}
    return two_at_a_time(
        {
            "train": partial(workspace.fairchem, "train", "train", train),
            "tensorboard": partial(workspace.fairchem, "tensorboard", "train", **replace),
            "misspelt": partial(workspace.fairchem, "misspelt", "train", misspelt),
        }
    )


@pytest.fixture(scope="module")
def trained(first: dict[str, Done]) -> Done:
    return first["train"]


@pytest.fixture(scope="module")
def after(workspace: Workspace, trained: Done) -> dict[str, Done]:
    """What follows a training."""
    best = ("--checkpoint", trained.only("checkpoints/*/best_checkpoint.pt"))
    within = f"checkpoints/*/checkpoint-{CHECKPOINT_EVERY:08d}.pt"
    earlier = ("--checkpoint", trained.only(within))
    noise = {"coefficient": 7, "sigma_max": 0.3, "corrupt_ratio": 1.0, "fraction": 0.5}
    other_noise = [f"--task.ndem.{key}={value}" for key, value in noise.items()]
    ood = workspace.data / "val_ood"
    predict = (f"--dataset.test.src={ood}", "--task.prediction_dtype=float32")
    commands: dict[str, tuple[Any, ...]] = {
        "val_id": ("validate", *best),
        "val_id_other_noise": ("validate", *best, *other_noise),
        "val_ood": ("validate", *best, f"--dataset.val.src={ood}"),
        "predict": ("predict", *best, *predict),
        "resume": ("train", *earlier, "--task.ndem.coefficient=0.5"),
    }
    return two_at_a_time(
        {name: partial(workspace.fairchem, name, *rest) for name, rest in commands.items()}
    )


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=False)


def metrics_of(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records of a history without times, and without the separate records of ``grad_norm``."""
    return [
        {key: value for key, value in record.items() if key not in ("time_s", "process_s")}
        for record in records
        if "loss" in record
    ]


def check_training(done: Done, steps: int) -> None:
    """Every step logged with NDeM's numbers, validations without, all numbers finite."""
    training = metrics_of(done.history("train"))
    assert [record["step"] for record in training] == list(range(1, steps + 1))
    for record in training:
        assert record.keys() >= NDEM_METRICS | VAL_METRICS  # the logger leaves NaN out
        assert record["ndem_loss"] > 0
        assert 0 < record["ndem_sigma_A"] <= 0.05
    validation = metrics_of(done.history("val"))
    assert [record["step"] for record in validation] == list(range(5, steps + 1, EVAL_EVERY))
    for record in validation:
        assert record.keys() >= VAL_METRICS
        assert not [name for name in record if "ndem" in name]


def records_of(data: Path, split: str) -> dict[str, Any]:
    """Structures by the name that predictions give them, in the order of predictions."""
    dataset = LmdbDataset({"src": str(data / split)})
    named = {f"{record.sid}_{record.fid}": record for record in dataset}
    assert len(named) == len(dataset)
    return dict(sorted(named.items()))


def test_training_writes_checkpoints_history_and_an_offline_run(trained):
    check_training(trained, STEPS)
    latest = load(trained.only("checkpoints/*/checkpoint.pt"))
    best = load(trained.only("checkpoints/*/best_checkpoint.pt"))
    assert latest["step"] == STEPS  # also where the last step is none of checkpoint_every
    assert any("noisy_forces" in name for name in latest["state_dict"])
    assert all(torch.isfinite(value).all() for value in best["state_dict"].values())
    lowest = min(record["forces_mae"] for record in trained.history("val"))
    assert best["val_metrics"]["forces_mae"]["metric"] == pytest.approx(lowest)
    assert trained.only("logs/*/*/wandb/offline-run-*/run-*.wandb").stat().st_size > 1000


def test_settings_on_the_command_line_are_honoured(workspace, trained):
    assert workspace.config["task"]["ndem"]["coefficient"] == 1.0
    settings = load(trained.only("checkpoints/*/checkpoint.pt"))["config"]["task"]["ndem"]
    assert settings["coefficient"] == 0.5
    assert settings["sigma_max"] == workspace.config["task"]["ndem"]["sigma_max"]
    for record in metrics_of(trained.history("train")):
        share = record["ndem_share_of_loss"] * record["loss"]
        assert share == pytest.approx(0.5 * record["ndem_loss"], rel=1e-4)


def test_tensorboard_logs_ndem(first):
    done = first["tensorboard"]
    events = EventAccumulator(str(done.only("logs/tensorboard/*")))
    events.Reload()
    assert {f"train/{name}" for name in NDEM_METRICS | VAL_METRICS} <= set(events.Tags()["scalars"])
    for name in NDEM_METRICS:
        values = events.Scalars(f"train/{name}")
        assert [value.step for value in values] == list(range(1, STEPS + 1))
        assert all(math.isfinite(value.value) for value in values)
    assert [value.step for value in events.Scalars("val/forces_mae")] == [5, 10]


def test_the_short_name_works(first):
    if not fairchem_imports_the_package():
        pytest.skip("fairchem/experimental/.include does not list ndem_ocp_plugin")
    done = first["tensorboard"].check()
    config = yaml.safe_load(done.run_dir.with_suffix(".yml").read_text())
    assert config["trainer"] == "ndem"
    weights = load(done.only("checkpoints/*/checkpoint.pt"))["state_dict"]
    assert any("noisy_forces" in name for name in weights)


def test_validation_repeats_the_numbers_of_the_training(trained, after):
    """The best checkpoint is what the training validated, and the auxiliary head plays no part."""
    (found,) = metrics_of(after["val_id"].history("val"))
    best = min(metrics_of(trained.history("val")), key=lambda record: record["forces_mae"])
    for name in VAL_METRICS:
        assert found[name] == pytest.approx(best[name], rel=FRAMES), name
    assert not [name for name in found if "ndem" in name]


def test_validation_does_not_depend_on_the_noise(after):
    found = metrics_of(after["val_id"].history("val"))
    assert metrics_of(after["val_id_other_noise"].history("val")) == found
    assert len(found) == 1
    assert "sigma_max: 0.3" in after["val_id_other_noise"].output  # its configuration, printed


def test_validation_out_of_domain_agrees_with_the_predictions(workspace, after):
    (found,) = metrics_of(after["val_ood"].history("val"))
    predicted = np.load(after["predict"].only("results/*/ocp_predictions.npz"))
    records = records_of(workspace.data, "val_ood").values()
    energies = np.array([record.y for record in records])
    forces = np.concatenate([record.force[record.fixed == 0].numpy() for record in records])
    energy_mae = np.abs(predicted["energy"].reshape(-1) - energies).mean()
    forces_mae = np.abs(predicted["forces"] - forces).mean()
    assert found["energy_mae"] == pytest.approx(energy_mae, rel=FRAMES)
    assert found["forces_mae"] == pytest.approx(forces_mae, rel=FRAMES)
    (in_domain,) = metrics_of(after["val_id"].history("val"))
    assert found["energy_mae"] != pytest.approx(in_domain["energy_mae"], rel=0.01)


def test_predictions_hold_every_structure(workspace, after):
    predicted = np.load(after["predict"].only("results/*/ocp_predictions.npz"))
    records = records_of(workspace.data, "val_ood")
    free = [int((record.fixed == 0).sum()) for record in records.values()]
    assert {"ids", "energy", "forces"} <= set(predicted.files)
    assert predicted["ids"].tolist() == list(records)
    assert predicted["energy"].size == len(records)
    assert predicted["forces"].shape == (sum(free), 3)
    assert predicted["chunk_idx"].tolist() == np.cumsum(free)[:-1].tolist()
    assert np.isfinite(predicted["energy"]).all()
    assert np.isfinite(predicted["forces"]).all()
    assert np.abs(predicted["forces"]).max() > 0


def test_resume_continues_from_its_step(trained, after):
    """The steps that were missing, with the structures and the noise of the uninterrupted run."""
    resumed = metrics_of(after["resume"].history("train"))
    expected = metrics_of(trained.history("train"))[CHECKPOINT_EVERY:]
    assert [record["step"] for record in resumed] == [7, 8, 9, 10]
    for found, record in zip(resumed, expected):
        assert found["ndem_sigma_A"] == record["ndem_sigma_A"]
    for name in ("energy_mae", "forces_mae", "ndem_loss", "loss"):
        assert resumed[0][name] == pytest.approx(expected[0][name], rel=FRAMES), name
    assert [record["step"] for record in after["resume"].history("val")] == [10]


@pytest.mark.ddp
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_two_ranks(workspace, fraction):
    name = f"two_ranks_{fraction}"
    settings = (f"--task.ndem.fraction={fraction}", f"--optim.checkpoint_every={EVAL_EVERY}")
    with alone(TORCHS_PORT):
        done = workspace.fairchem(name, "train", "--num-gpus", 2, *settings)
    check_training(done, STEPS // 2)
    for folder in ("checkpoints", "results", "logs/ndem_ocp.HistoryLogger"):
        assert done.only(f"{folder}/*").name.endswith(f"-{name}")
    done.only("logs/*/*/history.jsonl")
    latest = load(done.only("checkpoints/*/checkpoint.pt"))
    assert latest["step"] == STEPS // 2
    assert latest["config"]["task"]["ndem"]["fraction"] == fraction
    assert all(torch.isfinite(value).all() for value in latest["state_dict"].values())
    assert done.only("checkpoints/*/best_checkpoint.pt").is_file()


@pytest.fixture
def calculator(trained: Done) -> OCPCalculator:
    """fairchem's own, as it is made from a checkpoint."""
    best = trained.only("checkpoints/*/best_checkpoint.pt")
    return OCPCalculator(checkpoint_path=best, cpu=True, seed=0)


def test_the_calculator_of_fairchem_takes_the_checkpoint(calculator):
    called = []
    head = calculator.trainer._unwrapped_model.output_heads["noisy_forces"].head
    head.register_forward_hook(lambda *_: called.append(True))
    slab = fcc111("Cu", size=(2, 2, 3), vacuum=8.0, periodic=True)
    add_adsorbate(slab, "O", height=1.5, position="fcc")
    slab.calc = calculator
    assert math.isfinite(slab.get_potential_energy())
    forces = slab.get_forces()
    assert forces.shape == (13, 3)
    assert np.isfinite(forces).all()
    assert np.abs(forces).max() > 1e-3
    assert not called


def test_the_calculator_agrees_with_the_predictions(workspace, after, calculator):
    predicted = np.load(after["predict"].only("results/*/ocp_predictions.npz"))
    name, record = next(iter(records_of(workspace.data, "val_ood").items()))
    assert predicted["ids"][0] == name
    slab = Atoms(
        record.atomic_numbers.numpy(),
        record.pos.numpy(),
        cell=record.cell[0].numpy(),
        tags=record.tags.numpy(),
        pbc=True,
    )
    slab.calc = calculator
    expected = predicted["forces"][: predicted["chunk_idx"][0]]
    found = slab.get_forces()[(record.fixed == 0).numpy()]
    assert slab.get_potential_energy() == pytest.approx(predicted["energy"].flat[0], rel=FRAMES)
    assert np.abs(found - expected).max() <= FRAMES * np.abs(expected).max()


def test_a_misspelt_setting_ends_in_one_sentence(first):
    done = first["misspelt"]
    assert done.status == 2
    assert "Traceback" not in done.output
    assert (
        "ndem: task.ndem.sigma_maks is not a setting of NDeM. Did you mean 'sigma_max'?"
        in done.output
    )
    assert not list(done.run_dir.rglob("*.pt"))


def test_register_gives_fairchem_the_short_names(tmp_path):
    code = """
import ndem_ocp
from fairchem.core.common.registry import registry

ndem_ocp.register()  # without fairchem's set-up, which reads the plug-in folder
assert registry.get_trainer_class("ndem") is ndem_ocp.NDeMTrainer
assert registry.get_model_class("ndem_hydra") is ndem_ocp.TwoViewHydra
assert registry.get_loss_class("squared_l2") is ndem_ocp.SquaredL2Loss
print("all found")
"""
    done = run([sys.executable, "-c", code], tmp_path / "registry").check()
    assert done.output.splitlines()[-1] == "all found"
