"""task.deterministic: what it sets, and that a step has no operation without a fixed order."""

from __future__ import annotations

import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import steps
from fairchem_kit.training.checks.messages import ConfigError

# CUDA operations without a deterministic form, from torch's page on use_deterministic_algorithms
WITHOUT = {
    *("put_", "histc", "bincount", "kthvalue", "median", "cumsum", "grid_sampler_2d"),
    *("grid_sampler_3d", "scatter_reduce", "scatter_reduce_", "_embedding_bag", "nll_loss2d"),
    *("adaptive_avg_pool2d_backward", "max_unpool2d", "upsample_bilinear2d_backward"),
    *("_ctc_loss", "_ctc_loss_backward", "reflection_pad1d_backward", "index_reduce_"),
}


def listed(name: str, args: tuple) -> bool:
    """Whether the page means this call."""
    if name == "cumsum":  # a sum of whole numbers is exact in any order
        return args[0].is_floating_point()
    if name == "bincount":
        return len(args) > 1 and args[1] is not None  # with weights
    if name.startswith("scatter_reduce"):
        return "prod" in args
    return name in WITHOUT


@pytest.fixture
def torch_as_it_was():
    fill = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen: set[str] = set()
        self.without: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.seen.add(name)
        if listed(name, args):
            self.without.add(name)
        return func(*args, **(kwargs or {}))


def test_a_step_is_the_same_and_has_a_fixed_order(new_trainer, torch_as_it_was):
    expected = steps(new_trainer(), 2)
    trainer = new_trainer(edit=lambda config: config["task"].update(deterministic=True))
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    with Names() as names:
        assert steps(trainer, 2) == expected
    assert {"index_add_", "mm"} <= names.seen
    # of the distances of neighbours, and only the value is used: the same with any order of ties
    assert names.without == {"kthvalue"}


def test_it_is_off_unless_asked_for(new_trainer):
    new_trainer()
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(ConfigError, match=r"task.deterministic = 'yes': True or False"):
        new_trainer(edit=lambda config: config["task"].update(deterministic="yes"))
