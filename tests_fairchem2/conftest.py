"""Tests on fairchem-core 2: `make test2`, in an environment of its own (.venv2).

One process group and one data set for all of them; models of a few thousand weights.
"""

from __future__ import annotations

import os

os.environ.setdefault("WANDB_MODE", "disabled")

import pytest
import torch


def pytest_configure(config):
    # fairchem 2 and what it imports warn of each other; the tests on 1.10 take warnings for errors
    config.addinivalue_line("filterwarnings", "ignore")


@pytest.fixture(scope="session", autouse=True)
def process_group():
    """What the fairchem command sets up before it builds a runner."""
    from fairchem.core.common import distutils

    torch.set_num_threads(1)
    distutils.assign_device_for_local_rank(cpu=True, local_rank=0)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """EMT slabs with adsorbates: train (40 structures), val_id, val_ood."""
    from fairchem_kit.data.demo import make_demo

    out = tmp_path_factory.mktemp("demo") / "emt"
    make_demo(out, size="small", form="aselmdb", progress=False)
    return out
