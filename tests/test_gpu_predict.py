"""ndem_ocp.bench.gpu.predict: what is counted, how it grows, and its table."""

from __future__ import annotations

import json

import pytest
import torch
from fairchem.core.models.equiformer_v2.layer_norm import (
    EquivariantLayerNormArraySphericalHarmonics,
)

from ndem_ocp.bench.gpu import predict
from ndem_ocp.bench.gpu.counting import Count, counted_kernels
from ndem_ocp.bench.gpu.memory_count import Live
from ndem_ocp.bench.pages.gpu import gpu_measured, gpu_memory, gpu_predicted
from ndem_ocp.models.equiformer.grid import s2_activation
from ndem_ocp.models.equiformer.norm import layer_norm

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


def test_a_layer_norm_is_one_kernel_and_backward_another_with_one_sum():
    module = EquivariantLayerNormArraySphericalHarmonics(2, 4)
    x = torch.randn(ATOMS, 9, 4, requires_grad=True)
    count = Count(ATOMS)
    with counted_kernels(count), count:
        out = layer_norm(module, x)
        out.backward(torch.zeros_like(out).detach())
    names = [each.name for each in count.operations]
    assert names == ["layer norm", "zeros_like", "layer norm, backward", "sum"]
    forward, backward = count.operations[0], count.operations[2]
    assert forward.growing == 4 * (2 * x.numel() + 3 * ATOMS)
    assert backward.growing == 4 * (3 * x.numel() + 3 * ATOMS)
    assert module.affine_weight.grad.shape == (2, 4)


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
    origin = "Measured: Card, 2026-01-02 ([all numbers](results/gpu/card-2026-01-02-0000.json))"
    assert origin in table


def test_memory_is_followed_until_it_is_free():
    weight = torch.ones(10)
    with Live(ATOMS, [weight]) as live:
        rows = torch.ones(ATOMS, 10)
        view = rows[1:]  # no memory of its own
        twice = view * 2
        del rows, view
        twice = twice + weight  # the first two are never there together with the last
    fixed, row = 40, 4 * 10
    sizes = [sum(each) for each in live.moments]
    assert sizes[0] == fixed + ATOMS * row
    assert live.peak() == max(sizes) == fixed + (2 * ATOMS - 1) * row
    assert sizes[-1] < live.peak()


def test_what_autograd_keeps_is_in_memory():
    """After forward as many bytes as autograd says that it keeps; more at the peak of backward."""
    saved: dict[int, int] = {}

    def keep(tensor):
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    weight = torch.ones(8, 8, requires_grad=True)
    with Live(ATOMS, [weight]) as live:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = (torch.ones(ATOMS, 8) @ weight).sigmoid().square().sum()
        torch.zeros(1)  # by now what only forward needed is free
        assert live.moments[-1][1] == sum(saved.values())
        out.backward()
    fixed, growing = live.moments[-1]
    assert fixed >= 2 * weight.untyped_storage().nbytes()  # with its gradient
    assert growing == 0
    assert live.peak() > sum(saved.values())
    assert live.peak(10.0) == max(fixed + 10 * growing for fixed, growing in live.moments)


def test_the_table_of_memory(tmp_path):
    assert gpu_memory(tmp_path) == "not run"
    row = {"GiB": 12.34, "to upstream": 0.5}
    memory = {**dict.fromkeys(predict.ARMS, row), "commit": "abc"}
    content = {"model": "31M", "layers": 8, "atoms": 624, "memory": memory}
    (tmp_path / "gpu_predicted.json").write_text(json.dumps(content))
    assert gpu_memory(tmp_path).count("not run") == 8
    (tmp_path / "gpu").mkdir()
    steps = {"plain": {"peak, GiB": 10.0}, "plain, torch's code": {"peak, GiB": 20.0}}
    found = {
        "environment": {"card": {"name": "Card"}},
        "step_times": {"31M": {"tf32, batch 8": steps}},
    }
    (tmp_path / "gpu" / "card-2026-01-01-0000.json").write_text(json.dumps(found))
    table = gpu_memory(tmp_path)
    assert "| plain | torch's code | 12.3 | 0.50 | 20.0 |" in table
    assert "| plain | kernels | 12.3 | 0.50 | 10.0 |" in table


def arm(ms, ratio=None, peak=None):
    return {"ms": ms, "to upstream": ratio, "peak, GiB": peak}


@pytest.fixture
def card(tmp_path):
    """A folder of results with one of make gpu-check, as it is written today."""

    def write(**stages):
        own = {
            "card": {"name": "Card 80GB"}, "versions": {"torch": "2.11.0"}, "date": "2026-03-04",
            "commit": "0123456789abcdef-dirty",
        }  # fmt: skip
        (tmp_path / "gpu").mkdir(exist_ok=True)
        file = tmp_path / "gpu" / "card-80gb-2026-03-04-1200.json"
        file.write_text(json.dumps({"environment": own, **stages}))
        return tmp_path

    return write


def test_a_file_of_make_gpu_check_fills_all_tables(card):
    step = {"tf32, to upstream": 0.4, "fp32, to upstream": 0.6}
    memory = {"GiB": 12.34, "to upstream": 0.5}
    predicted = {
        "model": "31M", "layers": 8, "atoms": 624, "commit": "abc", "device": {"name": "H100"},
        "step": dict.fromkeys(predict.ARMS, step),
        "inference": dict.fromkeys(predict.ARMS, step),
        "memory": {**dict.fromkeys(predict.ARMS, memory), "commit": "abc"},
    }  # fmt: skip
    found = {"atoms": [600, 624, 650], "upstream": arm(300, 1.0, 33.0)}
    found |= {"plain": arm(120, 0.41, 9.0), "ndem, torch's code": arm(400, 1.3, 14.0)}
    large = {"atoms": [2400, 2500, 2600], "out of memory": ["upstream"], "ndem": arm(900, None, 50)}
    times = {
        "31M": {
            "tf32, batch 32, 2500 atoms": large,
            "bf16, batch 8, 624 atoms": {"error": "lost"},
            "tf32, batch 8, 624 atoms": found,
        },
        "inference": {"tf32, batch 8, 600 atoms": {"upstream": 100.0}},
    }
    folder = card(step_times=times)
    (folder / "gpu_predicted.json").write_text(json.dumps(predicted))
    origin = (
        "Card 80GB, torch 2.11.0, 2026-03-04, commit 0123456789 and changes since, 600 to 650 "
        "atoms in a batch ([all numbers](results/gpu/card-80gb-2026-03-04-1200.json))"
    )
    ratios, memories, steps = (f(folder) for f in (gpu_predicted, gpu_memory, gpu_measured))
    assert all(origin in each for each in (ratios, memories, steps))
    assert "| a plain step | TF32 | 0.5 | 0.40 | 0.40 | not run | 0.41 |" in ratios
    assert "| a step with NDeM | TF32 | 0.9 | 0.40 | 0.40 | 1.30 | not run |" in ratios
    assert "| energies and forces | TF32 | 0.5 | 0.40 | 0.40 | not run | not run |" in ratios
    assert "| fairchem's, plain | fairchem's | 12.3 | 0.50 | 33.0 |" in memories
    rows = [line for line in steps.splitlines() if "atoms |" in line]
    assert rows == [
        "| tf32, batch 8, 624 atoms | 300 | not run | 0.41 | not run | not run | 33.0 | 9.0 |"
        " not run |",
        "| tf32, batch 32, 2500 atoms | out of memory | 900 | not run | not run | not run |"
        " out of memory | not run | 50.0 |",
    ]
    assert "waits for Python" not in steps


def test_the_time_in_kernels_is_told_where_it_was_measured(card):
    times = {"31M": {"tf32, batch 8, 624 atoms": {"upstream": arm(300, 1.0)}}}
    profiles = {"batch": "tf32, batch 8, 624 atoms"}
    profiles |= {name: {"step": {"kernel ms": ms}} for name, ms in (("upstream", 200),)}
    assert "waits for Python" not in gpu_measured(card(step_times=times, kernels=profiles))
    profiles |= {name: {"step": {"kernel ms": ms}} for name, ms in (("plain", 60), ("ndem", 100))}
    said = gpu_measured(card(step_times=times, kernels=profiles))
    assert "for 200 ms with fairchem's code" in said
    assert "(ratios 0.30 and 0.50)" in said


def test_a_file_with_only_an_environment_measured_nothing(card):
    assert gpu_measured(card()) == "not run"
    assert gpu_measured(card(step_times={"31M": {"error": "lost"}})) == "not run"
