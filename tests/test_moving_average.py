"""The moving average in one call: fairchem's values, to the bit on the CPU."""

from __future__ import annotations

import pytest
import torch
from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
from torch import nn

from conftest import tiny_config, trainer_of
from fairchem_kit.training.moving_average import MovingAverage


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("decay", [0.999, 0.9, 0.5, 0.2, 1.0])
def test_it_is_fairchems_to_the_bit(dtype, decay):
    torch.manual_seed(0)
    weights = [torch.randn(*shape) for shape in ((1,), (7, 3), (100, 33), (50, 40))]
    weights[3] = weights[3].t()  # not contiguous
    weights = [nn.Parameter(weight.to(dtype)) for weight in weights]
    weights.append(nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=False))
    averages = [kind(weights, decay) for kind in (ExponentialMovingAverage, MovingAverage)]
    for _ in range(5):
        for weight in weights:
            weight.data += 0.1 * torch.randn(weight.shape).to(dtype)
        for average in averages:
            average.update()
    assert len(averages[0].shadow_params) == 4
    for expected, found in zip(*(average.shadow_params for average in averages)):
        assert torch.equal(found, expected)


def test_a_growing_decay_is_fairchems_too():
    weight = nn.Parameter(torch.ones(3))
    averages = [
        kind([weight], 0.999, use_num_updates=True)
        for kind in (ExponentialMovingAverage, MovingAverage)
    ]
    weight.data += 1
    for average in averages:
        average.update()
    assert torch.equal(*(average.shadow_params[0] for average in averages))
    assert averages[1].num_updates == 1


def test_trainers_use_it(demo_data, tmp_path):
    assert type(trainer_of(tiny_config(demo_data), tmp_path).ema) is MovingAverage
    config = tiny_config(demo_data)
    del config["optim"]["ema_decay"]
    assert trainer_of(config, tmp_path).ema is None
