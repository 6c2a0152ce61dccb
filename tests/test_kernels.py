"""Triton's kernels against torch's code: values and gradients, in Triton's interpreter on the CPU.

Where there is a GPU, the same comparisons run on it (marked gpu), compiled.
"""

from __future__ import annotations

import importlib

import pytest
import torch
import torch_geometric

from ndem_ocp.models.equiformer import grid, kernels, norm
from ndem_ocp.models.equiformer.convolution import RadialWeights, message, sum_messages
from ndem_ocp.models.equiformer.layout import layout
from ndem_ocp.models.equiformer.messages import Ends, by_node
from ndem_ocp.models.equiformer.softmax import edge_softmax
from ndem_ocp.models.equiformer_names import to_ours
from test_equiformer import (  # noqa: F401 (records: a fixture)
    assert_same,
    batch_of,
    build,
    model_config,
    outputs_and_gradients,
    records,
)

pytest.importorskip("triton", reason="Triton is not installed: pip install triton")
# not by an import statement: these need Triton
s2 = importlib.import_module("ndem_ocp.models.equiformer.kernels.s2")
sums = importlib.import_module("ndem_ocp.models.equiformer.kernels.sums")
norms = importlib.import_module("ndem_ocp.models.equiformer.kernels.norm")

CASES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.gpu),
]
TYPES = [torch.float32, torch.bfloat16]
BOUND = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


@pytest.fixture(params=CASES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("kernels are compiled here, for the GPU")
    return torch.device(request.param)


def numbers(*shape, device, dtype=torch.float32, seed=0):
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return made.to(device=device, dtype=dtype)


def error(found, expected):
    expected = expected.double()
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-30))


def results(function, inputs):
    """Values and gradients with respect to the inputs that are numbers."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    out = [each for each in (out if isinstance(out, tuple) else (out,)) if each is not None]
    weights = [numbers(*each.shape, device=each.device, seed=9).to(each.dtype) for each in out]
    gradients = torch.autograd.grad(out, leaves, weights)
    return [each.detach() for each in (*out, *gradients)]


def assert_close(found, expected, bound):
    assert len(found) == len(expected)
    for number, (one, other) in enumerate(zip(found, expected)):
        assert one.shape == other.shape
        assert error(one, other) < bound, (number, error(one, other))


# ---------------------------------------------------------------- S2 activation


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("edges", "rows", "kept", "channels", "points", "gated"),
    [
        (5, 19, 19, 8, 100, True),  # L = 4, M = 2
        (3, 9, 9, 7, 65, False),  # sizes that divide nothing
        (2, 37, 29, 3, 70, True),  # L = 6, M = 3; orders left out on the way back
        (1, 1, 1, 1, 16, False),
        (0, 4, 4, 5, 20, True),
    ],
)
def test_s2_activation(device, dtype, edges, rows, kept, channels, points, gated):
    make = {"device": device, "dtype": dtype}
    x, gate = numbers(edges, rows, channels, **make), numbers(edges, channels, seed=1, **make)
    to_grid = numbers(points, rows, seed=2, **make) / rows**0.5
    from_grid = numbers(kept, points, seed=3, **make) / points**0.5
    if gated:
        from_grid[0] = 0
    inputs = (x, gate) if gated else (x,)

    def run(function):
        return lambda x, gate=None: function(x, gate, to_grid, from_grid)

    expected = results(
        lambda x, gate=None: grid.s2_activation(x, gate, to_grid.double(), from_grid.double()),
        [each.double() for each in inputs],
    )
    assert_close(results(run(s2.s2_activation), inputs), expected, BOUND[dtype])


# ---------------------------------------------------------------- softmax


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("targets", "nodes", "heads"),
    [([0, 0, 0, 2, 2], 4, 8), ([1, 0, 1, 0, 1], 2, 3), ([0], 1, 1), ([], 3, 2)],
    ids=["nodes without edges", "not sorted", "one edge", "no edge"],
)
def test_softmax_over_the_edges_of_each_node(device, monkeypatch, dtype, targets, nodes, heads):
    target = torch.tensor(targets, dtype=torch.long, device=device)
    logits = 5 * numbers(len(target), heads, device=device, dtype=dtype)
    expected = results(
        lambda x: torch_geometric.utils.softmax(x, target, num_nodes=nodes), [logits.double()]
    )
    assert_close(
        results(lambda x: edge_softmax(x, target, nodes, None), [logits.double()]), expected, 1e-13
    )
    monkeypatch.setattr(kernels, "agrees", lambda *_: True)
    of = by_node(target, target, nodes)
    found = results(lambda x: edge_softmax(x, target, nodes, of), [logits])
    assert_close(found, expected, BOUND[dtype])


# ---------------------------------------------------------------- messages


@pytest.fixture
def always(monkeypatch):
    """Kernels are used wherever a tensor is, without being compared before."""
    monkeypatch.setattr(kernels, "agrees", lambda *_: True)


def a_graph(lmax, mmax, device, edges=3, nodes=3):
    """Ends with frames that have the zeros of Wigner matrices; by target, one node without."""
    lay = layout(lmax, mmax)
    frames = torch.zeros(edges, len(lay.rows), (lmax + 1) ** 2)
    for number, (degree, _) in enumerate(lay.rows):
        block = slice(degree**2, (degree + 1) ** 2)
        frames[:, number, block] = numbers(edges, 2 * degree + 1, device="cpu", seed=number)
    source = torch.arange(edges).flip(0) % nodes
    target = torch.arange(edges).div(2, rounding_mode="floor") % nodes
    return lay, Ends(source.to(device), target.to(device), frames.to(device))


def shared_weights(lay, by_degree):
    """For each order its radial weights, and how many there are."""
    found, start = [], 0
    for order in lay.orders:
        count = len(lay.of_order(order))
        first = order if by_degree else start
        found.append(slice(first, first + count))
        start += count
    return found, lay.lmax + 1 if by_degree else start


MESSAGES = [
    *((1, 1, False, torch.float32), (2, 2, True, torch.float32), (3, 0, False, torch.float32)),
    *((4, 2, False, torch.float32), (5, 1, False, torch.float32), (6, 3, False, torch.float32)),
    *((3, 3, False, torch.bfloat16), (4, 2, True, torch.bfloat16)),
    # more orders than a thread has in registers at a time
    *((4, 4, False, torch.float32), (5, 5, True, torch.float32)),
]


@pytest.mark.parametrize(("lmax", "mmax", "by_degree", "dtype"), MESSAGES)
def test_message(device, always, lmax, mmax, by_degree, dtype):
    channels, heads, hidden = 3, 2, 5
    lay, ends = a_graph(lmax, mmax, device)
    shared, weights = shared_weights(lay, by_degree)
    make = {"device": device, "dtype": dtype}
    degrees = [len(lay.of_order(order)) for order in lay.orders]
    convolution = [
        numbers((2 if order else 1) * count * heads, count * 2 * channels, seed=5, **make)
        for order, count in zip(lay.orders, degrees)
    ]
    inputs = [
        numbers(3, (lmax + 1) ** 2, channels, seed=1, **make),
        numbers(3, hidden, seed=2, **make),
        numbers(weights * 2 * channels, hidden, seed=3, **make),
        numbers(weights * 2 * channels, seed=4, **make),
        *convolution,
    ]
    bias = numbers(lay.blocks[0].stop * heads, **make)

    def run(which):
        def call(x, hidden, weight, radial_bias, *weights):
            radial = RadialWeights(hidden, weight, radial_bias)
            return message(x, radial, which, lay, shared, list(weights), bias.to(x.dtype))[0]

        return call

    fused = ends._replace(
        frames=ends.frames.to(dtype), by_node=by_node(ends.source, ends.target, 3)
    )
    # what both start from are the same rounded numbers
    exact = ends._replace(frames=fused.frames.double())
    expected = results(run(exact), [each.double() for each in inputs])
    assert_close(results(run(fused), inputs), expected, 5 * BOUND[dtype])


@pytest.mark.parametrize("dtype", TYPES)
def test_sums_over_edges(device, dtype):
    """In pieces, by either end, of a part of the channels; the same bits every time."""
    index = torch.tensor([2, 0, 2, 4, 0, 2, 1], device=device)
    values = numbers(7, 3, 10, device=device, dtype=dtype)
    ordered, order = torch.sort(index, stable=True)
    start = torch.searchsorted(ordered, torch.arange(6, device=device))
    found = []
    for _ in range(2):
        out = torch.zeros(5, 3, 4, device=device)
        for piece in (slice(0, 4), slice(4, 7)):
            sums.add_to_nodes(out, values[piece], start, order, piece, offset=6)
        found.append(out)
    expected = torch.zeros(5, 3, 4, device=device, dtype=torch.float64)
    expected.index_add_(0, index, values[..., 6:].double())
    assert error(found[0], expected) < 1e-6
    assert torch.equal(*found)
    assert found[0][3].abs().sum() == 0  # a node without edges


def test_sum_of_messages(device, always):
    lay, ends = a_graph(2, 1, device, edges=4)
    rows, channels = len(lay.rows), 4
    inputs = [
        numbers(4, 6, device=device),
        numbers(4, 2, device=device, seed=1),
        numbers(rows * channels, 6, device=device, seed=2),
    ]

    def run(which):
        def call(y, attention, weight):
            bias = torch.zeros(len(weight), dtype=y.dtype, device=device)
            return sum_messages(y, attention, which, 3, [slice(0, 6)], [weight], bias)

        return call

    exact = ends._replace(frames=ends.frames.double())
    expected = results(run(exact), [each.double() for each in inputs])
    fused = ends._replace(by_node=by_node(ends.source, ends.target, 3))
    assert_close(results(run(fused), inputs), expected, 1e-5)


# ---------------------------------------------------------------- layer norm


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("nodes", "lmax", "channels"),
    [(5, 4, 8), (9, 6, 3), (4, 1, 6), (1, 3, 7), (3, 2, 130), (2, 0, 5), (0, 2, 4)],
)
def test_layer_norm(device, monkeypatch, nodes, lmax, channels, affine):
    monkeypatch.setattr(norms, "PROGRAMS", 2)  # each with several nodes
    rows = (lmax + 1) ** 2
    shapes = [(channels,), (channels,), (lmax, channels)] if affine else []
    inputs = [numbers(nodes, rows, channels, device=device)]
    inputs += [numbers(*shape, device=device, seed=n) for n, shape in enumerate(shapes, 1)]
    share = numbers(rows - 1, device=device, seed=8).abs()

    def run(function):
        def call(x, first=None, bias=None, weight=None):
            return function(x, first, bias, weight, share.to(x.dtype), 1e-5)

        return call

    expected = results(run(norm.normalized), [each.double() for each in inputs])
    found = results(run(norms.layer_norm), inputs)
    assert_close(found, expected, BOUND[torch.float32])
    again = results(run(norms.layer_norm), inputs)
    assert all(torch.equal(one, other) for one, other in zip(found, again))


def test_a_whole_model_uses_them(records, monkeypatch):  # noqa: F811
    """Every call of a kernel in our EquiformerV2, two layers of L = 2, with its force head."""
    sizes = {"lmax_list": [2], "mmax_list": [1], "grid_resolution": 6, "num_layers": 1}
    model = build(to_ours(model_config(**sizes, alpha_drop=0.0, max_neighbors=2)))
    batch = batch_of(records[:1], torch.float32)
    expected = outputs_and_gradients(model, batch)
    model.zero_grad(set_to_none=True)
    calls = []
    monkeypatch.setattr(kernels, "usable", lambda like: True)
    monkeypatch.setattr(kernels, "agrees", lambda name, *_: calls.append(name) or True)
    found = outputs_and_gradients(model, batch)
    used = {"message", "S2 activation", "sums over edges", "edge softmax", "layer norm"}
    assert set(calls) == used
    assert_same(expected, found, 1e-4)


# ---------------------------------------------------------------- whether one is used


def test_none_is_used_on_a_cpu():
    assert not kernels.usable(torch.ones(1))


@pytest.fixture
def a_device(monkeypatch):
    monkeypatch.setattr(kernels, "usable", lambda like: True)
    monkeypatch.setattr(kernels, "_agreed", {})


def test_a_kernel_that_agrees_is_asked_once(a_device):
    asked = []

    def compare():
        asked.append(1)
        return [(torch.ones(3), torch.ones(3) + 1e-6)]

    assert all(kernels.agrees("test", torch.ones(1), (3,), compare) for _ in range(3))
    assert kernels.agrees("test", torch.ones(1), (4,), compare)  # another size
    assert len(asked) == 2


@pytest.mark.parametrize("wrong", [1.001, float("nan")])
def test_a_kernel_that_differs_is_not_used_and_a_warning_says_so(a_device, caplog, wrong):
    pair = (torch.full((3,), wrong), torch.ones(3))
    for _ in range(2):
        assert not kernels.agrees("test", torch.ones(1), (), lambda: [pair])
    assert caplog.text.count("The test kernel is not used on this machine: it differs") == 1


def test_a_kernel_that_does_not_compile_is_not_used(a_device, caplog):
    def compare():
        raise RuntimeError("out of resource: shared memory")

    assert not kernels.agrees("test", torch.ones(1), (), compare)
    assert "RuntimeError: out of resource: shared memory" in caplog.text


def test_kernels_can_be_switched_off(monkeypatch):
    monkeypatch.setattr(kernels, "_triton", lambda: True)
    like = type("OnCuda", (), {"is_cuda": True, "dtype": torch.float32})()
    assert kernels.usable(like)
    with kernels.without_kernels():
        assert not kernels.usable(like)
    monkeypatch.setenv("NDEM_KERNELS", "0")
    assert not kernels.usable(like)
