"""How Triton's kernels are launched: compared before, on the right device, on any memory layout."""

from __future__ import annotations

import contextlib
import importlib

import pytest
import torch

from ndem_ocp.models.equiformer import kernels
from ndem_ocp.models.equiformer.convolution import RadialWeights, message, sum_messages
from ndem_ocp.models.equiformer.layout import layout
from ndem_ocp.models.equiformer.messages import Ends, by_node
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
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="kernels are compiled here, for the GPU"
)
messages, norm, s2, sums = (
    importlib.import_module(f"ndem_ocp.models.equiformer.kernels.{name}")
    for name in ("messages", "norm", "s2", "sums")
)
ALL = {"message", "S2 activation", "sums over edges", "edge softmax", "layer norm"}


@pytest.fixture
def everywhere(monkeypatch):
    """Kernels are used on the CPU, after they have been compared, which none has been yet."""
    monkeypatch.setattr(kernels, "usable", lambda like: True)
    monkeypatch.setattr(kernels, "_agreed", {})


def a_model(**backbone):
    sizes = {"lmax_list": [2], "mmax_list": [1], "grid_resolution": 6, "num_layers": 1}
    backbone = {**sizes, "alpha_drop": 0.0, "drop_path_rate": 0.0, "max_neighbors": 2, **backbone}
    return build(to_ours(model_config(**backbone)))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_whole_model_compares_each_before_its_first_use(
    records,  # noqa: F811
    everywhere,
    caplog,
    checkpointing,
):
    """Also in a layer that is checkpointed, which counts what is saved for backward."""
    model = a_model(activation_checkpoint=checkpointing)
    batch = batch_of(records[:1], torch.float32)
    found = outputs_and_gradients(model, batch)
    assert {key[0] for key in kernels._agreed} == ALL
    assert all(kernels._agreed.values()), caplog.text
    model.zero_grad(set_to_none=True)
    kernels.usable = lambda like: False  # the fixture puts it back
    assert_same(outputs_and_gradients(model, batch), found, 1e-4)


def test_without_edges_nothing_is_said_about_a_kernel(everywhere):
    x, radial, _, (ends, lay, shared) = an_edge(1, 1)
    none = Ends(*(each[:0] for each in ends[:3]))
    none = none._replace(by_node=by_node(none.source, none.target, 1))
    weights = RadialWeights(x.new_zeros(0, 2), radial.new_zeros(radial.shape[1], 2), radial[0])
    degrees = [len(lay.of_order(order)) for order in lay.orders]
    maps = [x.new_zeros((2 if m else 1) * n * 2, n * 6) for m, n in zip(lay.orders, degrees)]
    out, _ = message(x, weights, none, lay, list(shared), maps, x.new_zeros(len(maps[0])))
    assert out.shape == (0, len(lay.rows), 2)
    assert not kernels._agreed


def test_too_little_memory_says_nothing_about_a_kernel(everywhere):
    def compare():
        raise torch.cuda.OutOfMemoryError("full")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        kernels.agrees("test", torch.ones(1), (), compare)
    assert not kernels._agreed


def an_edge(edges, nodes, channels=3, dtype=torch.float32, lmax=2, mmax=1):
    """Where the last of ``edges`` edges goes from the last node to the last node."""
    lay = layout(lmax, mmax)
    ends = torch.full((edges,), nodes - 1)
    frames = torch.empty(edges, len(lay.rows), (lmax + 1) ** 2, dtype=dtype)
    shared, start = [], 0
    for order in lay.orders:
        shared.append(slice(start, start + len(lay.of_order(order))))
        start = shared[-1].stop
    x = torch.empty(nodes, (lmax + 1) ** 2, channels, dtype=dtype)
    radial = torch.ones(1, start * 2 * channels, dtype=dtype)
    return x, radial, slice(edges - 1, edges), (Ends(ends, ends, frames), lay, tuple(shared))


def test_each_kernel_is_launched_on_the_device_of_its_tensors(monkeypatch):
    inside, launched = [], []

    @contextlib.contextmanager
    def device_of(tensor):
        inside.append(tensor)
        yield
        inside.pop()

    class Spy:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *args, **kwargs: launched.append((self.name, len(inside)))

    names = [
        *((messages, "_weighted"), (messages, "_weighted_backward"), (s2, "_forward")),
        *((s2, "_backward"), (sums, "_add"), (norm, "_forward"), (norm, "_backward")),
    ]
    for module, name in names:
        monkeypatch.setattr(module, name, Spy(name))
    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    x, radial, chunk, where = an_edge(1, 1)
    back = messages.weighted(x, radial, chunk, where)
    messages.gradients(back, x, radial, chunk, where)
    sums.add_to_nodes(x, x, *by_node(*where[0][:2], 1).target, chunk)
    rows = torch.ones(2, 4, 3, requires_grad=True)
    s2.s2_activation(rows, None, torch.ones(5, 4), torch.ones(4, 5)).sum().backward()
    norm.layer_norm(rows, None, None, None, torch.ones(3), 1e-5).sum().backward()
    assert launched == [
        *(("_weighted", 1), ("_weighted_backward", 1), ("_add", 1), ("_forward", 1)),
        *(("_backward", 1), ("_forward", 1), ("_backward", 1)),
    ]


def test_sums_into_memory_that_is_not_contiguous():
    """Such as the gradient of node features that were made by transposing."""
    values, target = torch.randn(4, 3, 5), torch.tensor([0, 1, 1, 1])
    out = torch.zeros(3, 2, 5).transpose(0, 1)
    sums.add_to_nodes(out, values, *by_node(target, target, 2).target, slice(0, 4))
    torch.testing.assert_close(out, torch.stack([values[0], values[1:].sum(0)]))


def test_edges_need_not_be_sorted(everywhere):
    """Such as those that are stored in a data set."""
    source, target = torch.tensor([0, 2, 1, 0, 2]), torch.tensor([2, 0, 2, 1, 0])
    lay, values, weight = layout(2, 1), torch.randn(5, 6), torch.randn(7 * 4, 6)
    ends = Ends(source, target, torch.randn(5, len(lay.rows), 9))

    def summed(which):
        return sum_messages(values, None, which, 3, [slice(0, 6)], [weight], torch.zeros(28))

    fused = ends._replace(by_node=by_node(source, target, 3))
    torch.testing.assert_close(summed(fused), summed(ends))
    assert list(kernels._agreed.values()) == [True]


FAR = 2**31  # from here on a place in a tensor needs more than 32 bits


def test_sums_of_large_tensors():
    """Only the last rows of the tensor are ever in memory."""
    width = 1 << 20
    edges = FAR // width + 2
    values = torch.empty(edges, 1, width, dtype=torch.bfloat16)
    values[-2:, 0, -8:] = torch.arange(8.0)
    out, start = torch.zeros(1, 1, 8), torch.tensor([edges - 2, edges])
    sums.add_to_nodes(out, values, start, torch.arange(edges), slice(0, edges), offset=width - 8)
    assert torch.equal(out[0, 0], 2 * torch.arange(8.0))


def test_messages_of_large_tensors():
    """Node features and frames; only their last rows are ever in memory."""
    channels, lmax, mmax = 64, 6, 3
    rows, coefficients = len(layout(lmax, mmax).rows), (lmax + 1) ** 2
    nodes = FAR // (coefficients * channels) + 2
    edges = FAR // (rows * coefficients) + 2
    x, radial, chunk, where = an_edge(edges, nodes, channels, torch.bfloat16, lmax, mmax)
    frames = where[0].frames
    assert min(x.numel(), frames.numel()) > FAR
    x[-1] = torch.randn(coefficients, channels)
    frames[-1] = 0
    for number, (degree, _) in enumerate(where[1].rows):
        frames[-1, number, degree**2 : (degree + 1) ** 2] = torch.randn(2 * degree + 1)
    both = torch.cat([x[-1], x[-1]], dim=1).float()
    expected = frames[-1].float() @ both
    found = messages.weighted(x, radial, chunk, where)
    torch.testing.assert_close(found[0].float(), expected, rtol=0.02, atol=0.02)
    _, d_both = messages.gradients(found, x, radial, chunk, where)
    expected = frames[-1].float().t() @ found[0].float()
    torch.testing.assert_close(d_both[0].float(), expected, rtol=0.02, atol=0.05)
