"""Our layer norm against fairchem's: outputs and gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from fairchem.core.models.equiformer_v2.layer_norm import (
    EquivariantLayerNormArray,
    EquivariantLayerNormArraySphericalHarmonics,
    EquivariantRMSNormArraySphericalHarmonicsV2,
)
from torch.utils._python_dispatch import TorchDispatchMode

from ndem_ocp.bench.gpu.counting import FREE
from ndem_ocp.models.equiformer import norm
from ndem_ocp.models.equiformer.norm import layer_norm

SIZES = [(7, 1, 5), (4, 2, 3), (5, 3, 8), (3, 4, 1), (2, 5, 9), (9, 6, 7), (1, 3, 6), (0, 2, 4)]


def a_norm(lmax, channels, of=EquivariantLayerNormArraySphericalHarmonics, **settings):
    """In float64, with weights that are not ones and zeros."""
    made = of(lmax, channels, **settings).double()
    for number, parameter in enumerate(made.parameters()):
        wave = torch.sin(torch.arange(parameter.numel(), dtype=torch.float64) + number)
        parameter.data = wave.view_as(parameter)
    return made


def features(nodes, lmax, channels, dtype=torch.float64):
    made = torch.randn(
        nodes, (lmax + 1) ** 2, channels, generator=torch.Generator().manual_seed(nodes)
    )
    return made.to(dtype).requires_grad_()


def results(function, module, x):
    out = function(x)
    given = torch.cos(torch.arange(out.numel(), dtype=x.dtype) * 1.3).view_as(out)
    return [out.detach(), *torch.autograd.grad(out, [x, *module.parameters()], given)]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("normalization", "balanced"), [("component", True), ("component", False), ("norm", True)]
)
@pytest.mark.parametrize(("nodes", "lmax", "channels"), SIZES)
def test_is_upstreams(nodes, lmax, channels, affine, normalization, balanced):
    module = a_norm(
        lmax,
        channels,
        affine=affine,
        normalization=normalization,
        std_balance_degrees=balanced,
        eps=1e-3,
    )
    x = features(nodes, lmax, channels)
    expected = results(module, module, x)
    module.forward = None  # is not called
    assert_same(results(lambda x: layer_norm(module, x), module, x), expected)


@pytest.mark.parametrize(
    "of", [EquivariantLayerNormArray, EquivariantRMSNormArraySphericalHarmonicsV2]
)
def test_another_norm_is_called(of):
    module, x = a_norm(2, 4, of=of), features(3, 2, 4)
    assert_same(results(lambda x: layer_norm(module, x), module, x), results(module, module, x))


def test_degree_0_alone():
    module, x = a_norm(0, 4), features(3, 0, 4)
    assert torch.equal(layer_norm(module, x), module(x))
    layer_norm(module, x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_any_memory_layout():
    """Of the features, and of the gradient: that of a sum has no strides."""
    module = a_norm(3, 5)
    x = features(4, 3, 5).detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    gradients = []
    for function in (module, lambda x: layer_norm(module, x)):
        gradients.append(torch.autograd.grad(function(x).sum(), [x, *module.parameters()]))
    assert_same(*reversed(gradients))


def test_frozen_weights_and_fixed_features():
    module, x = a_norm(2, 4), features(3, 2, 4)
    expected = results(module, module, x)
    module.affine_weight.requires_grad_(False)
    (gradient,) = torch.autograd.grad(layer_norm(module, x).sum(), x)
    assert gradient.shape == x.shape
    module.affine_weight.requires_grad_()
    out = layer_norm(module, x.detach())
    given = torch.cos(torch.arange(out.numel(), dtype=x.dtype) * 1.3).view_as(out)
    assert_same(torch.autograd.grad(out, list(module.parameters()), given), expected[2:])


def test_autocast_does_not_round():
    """Upstream's norms are not under autocast, either."""
    module, x = a_norm(3, 8).float(), features(5, 3, 8, torch.float32)
    expected = results(lambda x: layer_norm(module, x), module, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results(lambda x: layer_norm(module, x), module, x)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


def test_shapes_and_types_that_do_not_fit_are_upstreams_errors():
    module = a_norm(2, 4)
    for wrong in (features(3, 1, 4), features(3, 2, 5), features(3, 2, 4, torch.float32)):
        with pytest.raises(RuntimeError):
            layer_norm(module, wrong)


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ not in FREE
        return func(*args, **(kwargs or {}))


def operations(function, x):
    with Operations() as forward:
        out = function(x)
    with Operations() as backward:
        out.backward(torch.ones_like(out))
    return forward.count, backward.count


def test_fewer_operations_than_upstream():
    """Without a loop over degrees."""
    counts = {}
    for lmax in (2, 6):
        module, x = a_norm(lmax, 4), features(3, lmax, 4)
        upstream = operations(module, x)
        ours = operations(partial(layer_norm, module), x)
        assert ours[0] < upstream[0]
        assert ours[1] < upstream[1]
        counts[lmax] = ours
    assert counts[2] == counts[6]


def test_large_and_zero_features_are_upstreams():
    module = a_norm(2, 4)
    for factor in (0.0, 1e-12, 1e12):
        x = (features(3, 2, 4) * factor).detach().requires_grad_()
        assert_same(results(lambda x: layer_norm(module, x), module, x), results(module, module, x))


def test_the_share_of_each_coefficient():
    module = a_norm(2, 4)
    assert norm._share(module, features(1, 2, 4)).tolist() == pytest.approx(
        [1 / 6] * 3 + [1 / 10] * 5
    )
