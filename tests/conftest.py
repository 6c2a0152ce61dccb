"""Shared pieces: a tiny data set, tiny models, trainers in this process."""

from __future__ import annotations

import copy
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    # Triton's kernels run in its interpreter; read when Triton is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
# fairchem shares batches among ranks with twelve lines that numba compiles for five seconds, in
# each rank anew. Python runs the same lines; test_fairchem_command.py has them compiled.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")

from fairchem.core.common.utils import load_config, setup_imports

import ndem_ocp
from fairchem_kit.data.demo import make_demo
from grids import remember_grids
from ndem_ocp.testing import steps, trainer_of  # noqa: F401 (steps: for the tests)

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # of a shell's job in the background; what tests start must not inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
TINY_BACKBONE = {
    "num_layers": 1,
    "sphere_channels": 8,
    "attn_hidden_channels": 8,
    "num_heads": 2,
    "attn_alpha_channels": 8,
    "attn_value_channels": 4,
    "ffn_hidden_channels": 8,
    "edge_channels": 8,
    "lmax_list": [2],
    "mmax_list": [1],
    "grid_resolution": 6,
    "max_radius": 4.0,
    "max_neighbors": 8,
}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Side by side (make test), files with slow tests begin: none is left to the end alone."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session", autouse=True)
def _fairchem():
    torch.set_num_threads(1)  # results to the bit, and no two tests fighting for cores
    setup_imports()
    ndem_ocp.register()
    remember_grids()


@pytest.fixture(autouse=True)
def _own_environment():
    """Runs in this process leave fairchem's group of ranks, torch's store and the address of W&B's
    service in the environment: not for the next test, nor for what it starts."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def two_threads():
    """Two threads of torch during the test, however it ends."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory) -> Path:
    """The small generated set, with train, val_id and val_ood."""
    out = tmp_path_factory.mktemp("demo") / "data"
    make_demo(out, size="small", progress=False)
    return out


def tiny_config(data: Path, **ndem: Any) -> dict[str, Any]:
    """configs/oc20/demo.yml with a model and a schedule for seconds; ``ndem`` overrides."""
    config = load_config(str(ROOT / "configs/oc20/demo.yml"))[0]
    config["model"]["backbone"].update(TINY_BACKBONE)
    config["dataset"]["train"]["src"] = str(data / "train")
    config["dataset"]["val"]["src"] = str(data / "val_id")
    config["logger"] = {"name": "ndem_ocp.HistoryLogger", "inner": None}
    config["optim"].update(batch_size=4, eval_batch_size=8, max_epochs=1, eval_every=1000)
    config["task"]["ndem"].update(ndem)
    return copy.deepcopy(config)


def short_training(data: Path, folder: Path) -> Path:
    """The checkpoints of a run of a few steps, with validations."""
    config = tiny_config(data)
    config["optim"].update(max_epochs=1, eval_every=10)
    trainer_of(config, folder, run_id="first").train(disable_eval_tqdm=True)
    return folder / "checkpoints" / "first"


@pytest.fixture
def new_trainer(demo_data, tmp_path):
    """Factory: ``new_trainer(name=..., seed=..., edit=function of the config, **ndem)``."""

    def make(name=None, seed=0, edit=None, **ndem):
        config = tiny_config(demo_data, **ndem)
        if edit is not None:
            edit(config)
        return trainer_of(config, tmp_path, name, seed)

    return make
