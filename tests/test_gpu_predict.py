"""ndem_ocp.bench.gpu.predict: what is counted, how it grows, and its table."""

from __future__ import annotations

import json

import pytest
import torch

from ndem_ocp.bench.gpu import predict
from ndem_ocp.bench.gpu.counting import Count, counted_kernels
from ndem_ocp.bench.pages.gpu import gpu_predicted
from ndem_ocp.models.equiformer.grid import s2_activation

ATOMS = 13


def test_bytes_and_products_of_an_operation():
    weight, rows = torch.ones(4, 8), torch.ones(2 * ATOMS, 4)
    with Count(ATOMS) as count:
        out = rows @ weight
        out.view(-1).t()  # free
        out += 1
    product, added = count.operations
    assert product.name == "mm"
    assert (product.fixed, product.growing) == (4 * 8 * 4, 4 * 2 * ATOMS * (4 + 8))
    assert product.flops == 2 * 2 * ATOMS * 4 * 8
    assert product.of(3.0) == (product.fixed + 3 * product.growing, 3 * product.flops)
    assert added.growing == 2 * 4 * out.numel()
    assert not added.flops


def test_a_gradient_of_a_weight_grows_though_the_weight_is_larger():
    with Count(ATOMS) as count:
        torch.ones(100, ATOMS) @ torch.ones(ATOMS, 100)
    (product,) = (each for each in count.operations if each.name == "mm")
    assert product.grows
    assert product.fixed == 4 * 100 * 100


def test_a_kernel_is_one_operation_each_way():
    x = torch.randn(ATOMS, 9, 4, requires_grad=True)
    to_grid, from_grid = torch.randn(20, 9), torch.randn(9, 20)
    found = {}
    for kernels in (False, True):
        count = Count(ATOMS)
        if kernels:
            with counted_kernels(count), count:
                s2_activation(x, None, to_grid, from_grid).sum().backward()
        else:
            with count:
                s2_activation(x, None, to_grid, from_grid).sum().backward()
        found[kernels] = count.operations
    names = [each.name for each in found[True]]
    assert [name for name in names if "S2" in name] == ["S2 activation", "S2 activation, backward"]
    flops = {kernels: sum(each.flops for each in found[kernels]) for kernels in found}
    assert flops[True] == flops[False] == 2 * ATOMS * 4 * 9 * 20 * 5
    assert sum(e.growing for e in found[True]) < sum(e.growing for e in found[False])


def test_time_is_the_longest_of_bytes_products_and_a_launch():
    with Count(ATOMS) as count:
        torch.ones(ATOMS)
    assert predict.seconds_of(count.operations, 1.0, "tf32") == predict.LAUNCH_S
    large = 1e10
    bandwidth = predict.PEAK["bytes"] * predict.REACHED["bytes"]
    expected = 4 * ATOMS * large / bandwidth
    assert predict.seconds_of(count.operations, large, "tf32") == pytest.approx(expected)


def test_layers_are_added():
    with Count(ATOMS) as one:
        torch.ones(ATOMS) + 1
    with Count(ATOMS) as two:
        for _ in range(2):
            torch.ones(ATOMS) + 1
    names = [each.name for each in predict.deeper(one.operations, two.operations, 8)]
    assert names.count("add") == 8


def test_the_table_has_what_is_measured_beside_what_is_predicted(tmp_path):
    assert gpu_predicted(tmp_path) == "not run"
    row = {"tf32, to upstream": 0.4, "fp32, to upstream": 0.6}
    arms = dict.fromkeys(predict.ARMS, row)
    content = {
        "model": "31M", "layers": 8, "atoms": 624, "commit": "abc", "device": {"name": "H100"},
        "step": arms, "inference": arms,
    }  # fmt: skip
    (tmp_path / "gpu_predicted.json").write_text(json.dumps(content))
    assert gpu_predicted(tmp_path).count("not run") == 17
    (tmp_path / "gpu").mkdir()
    for date, ratio in (("2026-01-01-0000", 0.9), ("2026-01-02-0000", 0.45)):
        times = {"31M": {"tf32, batch 8": {"plain": {"to upstream": ratio}}}}
        times["inference"] = {"tf32, batch 8": {"plain": 3.0, "upstream": 4.0}}
        found = {"environment": {"card": {"name": "Card"}}, "step_times": times}
        (tmp_path / "gpu" / f"card-{date}.json").write_text(json.dumps(found))
    table = gpu_predicted(tmp_path)
    assert "| a plain step | TF32 | 0.5 | 0.40 | 0.40 | not run | 0.45 |" in table
    assert "| energies and forces | TF32 | 0.5 | 0.40 | 0.40 | not run | 0.75 |" in table
    assert "Measured: Card ([all numbers](results/gpu/card-2026-01-02-0000.json))" in table
