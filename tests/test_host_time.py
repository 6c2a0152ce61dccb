"""What is left out of each step: setting modes that are set, and many kernels of the optimizer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fairchem_kit.training.host_time import switch_only_if_needed, use_fused


class Counting(nn.Linear):
    calls = 0

    def train(self, mode: bool = True) -> nn.Module:
        self.calls += 1
        return super().train(mode)


def test_modes_are_set_only_if_one_differs():
    model = nn.Sequential(nn.Linear(1, 1), Counting(1, 1))
    switch_only_if_needed(model)
    assert model.train() is model
    assert model[1].calls == 0
    model[0].eval()  # one part of it
    model.train()
    assert model[0].training
    assert model[1].calls == 1
    assert model.eval() is model
    assert not any(module.training for module in model.modules())


def optimizer(kind=torch.optim.AdamW, on_gpu=True, **options):
    made = kind([nn.Parameter(torch.ones(1))], lr=0.1, **options)
    made.param_groups[0]["params"] = [
        SimpleNamespace(is_cuda=on_gpu, is_floating_point=lambda: True)
    ]
    use_fused(made)
    return made.param_groups[0].get("fused")


def test_adam_is_fused_on_a_gpu():
    assert optimizer() is True
    assert optimizer(torch.optim.Adam) is True
    assert not optimizer(on_gpu=False)
    assert not optimizer(torch.optim.SGD)


@pytest.mark.parametrize("option", [{"foreach": True}, {"fused": False}, {"capturable": True}])
def test_what_the_configuration_sets_stays(option):
    assert not optimizer(**option)
