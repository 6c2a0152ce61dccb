"""Linear maps of the coefficients of one order, against complex numbers and autograd."""

from __future__ import annotations

import pytest
import torch

from ndem_ocp.models.equiformer.orders import ComplexMap, ComplexMapInOne, RealMap, map_of

EDGES, INPUTS, OUTPUTS = 23, 5, 3
PIECES = (slice(0, 10), slice(10, 20), slice(20, 23))


def expected(order, weight, x):
    if order == 0:
        return x @ weight.t()
    real, imaginary = weight.chunk(2)
    y = torch.complex(*x.chunk(2, dim=1)) @ torch.complex(real, imaginary).t()
    return torch.cat([y.real, y.imag], dim=1)


def a_case(order):
    random = torch.Generator().manual_seed(order)

    def numbers(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    twice = 2 if order else 1
    return (
        numbers(twice * OUTPUTS, INPUTS),
        numbers(EDGES, twice * INPUTS),
        numbers(EDGES, twice * OUTPUTS),
    )


@pytest.mark.parametrize("wide", [False, True], ids=["whole", "columns"])
@pytest.mark.parametrize(("order", "kind"), [(0, RealMap), (1, ComplexMap), (1, ComplexMapInOne)])
def test_values_and_gradients(order, kind, wide):
    weight, x, g = a_case(order)
    leaves = [weight.clone().requires_grad_(), x.clone().requires_grad_()]
    y = expected(order, *leaves)
    d_weight, d_x = torch.autograd.grad(y, leaves, g)

    def place(like):  # as a part of wider rows, or by itself
        columns = slice(2, 2 + like.shape[1])
        return like.new_full((EDGES, like.shape[1] + 4), torch.nan)[:, columns] if wide else like

    x, g = place(x.clone()).copy_(x), place(g.clone()).copy_(g)
    out, back, part = place(torch.empty_like(g)), place(torch.empty_like(x)), kind(weight, True)
    for piece in PIECES:
        part.forward(x[piece], out[piece])
        part.backward(g[piece], x[piece], back[piece])
    gradient = part.gradient()
    assert gradient.is_contiguous()
    for found, right in ((out, y), (back, d_x), (gradient, d_weight)):
        torch.testing.assert_close(found, right.detach(), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("order", "kind"), [(0, RealMap), (1, ComplexMap), (1, ComplexMapInOne)])
def test_without_edges_the_gradient_is_zero_and_when_frozen_there_is_none(order, kind):
    weight, x, g = a_case(order)
    assert torch.equal(kind(weight, True).gradient(), torch.zeros_like(weight))
    frozen = kind(weight)
    frozen.backward(g, x, None)
    assert frozen.gradient() is None


def test_in_half_precision_no_sums_of_weights_are_rounded():
    weight = a_case(1)[0]
    assert isinstance(map_of(1, weight), ComplexMap)
    assert isinstance(map_of(1, weight.bfloat16()), ComplexMapInOne)
    assert isinstance(map_of(0, weight), RealMap)
