"""Linear maps of the coefficients of one order m on edges, and their gradients.

Order 0 is real, y = W x. For m > 0, (x_m, x_-m) is a complex number, and so are the weights:

    y_m = W_r x_m - W_i x_-m,    y_-m = W_i x_m + W_r x_-m

Weights and their gradients stay as upstream stores them, (outputs, inputs) and W_r above W_i: with
few edges, a transposed or joined copy of the weights takes almost as long as a product with them.
Where a map needs such a copy, the backward takes it from the forward.
"""

from __future__ import annotations

import torch
from torch import Tensor


class RealMap:
    """y = W x + bias, for pieces of the edges in turn.

    Args:
        weight: (O, I)
        train: whether :meth:`gradient` will be needed.
    """

    def __init__(self, weight: Tensor, train: bool = False) -> None:
        self.weight = weight
        self.train = train
        self.total: Tensor | None = None  # of the pieces so far

    def forward(self, x: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
        """(n, I) -> ``out``, (n, O)."""
        if bias is None:
            torch.mm(x, self.weight.t(), out=out)
        else:
            torch.addmm(bias, x, self.weight.t(), out=out)

    def backward(self, g: Tensor, x: Tensor, d_x: Tensor | None) -> None:
        """Write the gradient of x, (n, I), into ``d_x``, and add up that of the weights."""
        if d_x is not None:
            torch.mm(g, self.weight, out=d_x)
        if self.train:
            self.total = _sum(self.total, g, x)

    def gradient(self) -> Tensor | None:
        """Of the weights, for the pieces since the last call; None if not ``train``."""
        if not self.train:
            return None
        total, self.total = self.total, None
        return torch.zeros_like(self.weight) if total is None else total


class ComplexMap:
    """The map of an order m > 0 by three real products instead of four:

        k = W_r (x_m + x_-m),    y_m = k - (W_r + W_i) x_-m,    y_-m = k + (W_i - W_r) x_m

    Args:
        weight: (2O, I), W_r above W_i.
        train: whether :meth:`gradient` will be needed.
    """

    def __init__(self, weight: Tensor, train: bool = False) -> None:
        self.train = train
        self.real, self.imaginary = weight.chunk(2)
        self.sum, self.difference = self.real + self.imaginary, self.imaginary - self.real
        self.totals: list[Tensor | None] = [None, None, None]

    def forward(self, x: Tensor, out: Tensor) -> None:
        """(n, 2I), x_m before x_-m, -> ``out``, (n, 2O)."""
        (plus, minus), (y_plus, y_minus) = x.chunk(2, dim=1), out.chunk(2, dim=1)
        torch.mm(plus + minus, self.real.t(), out=y_plus)
        y_minus.copy_(y_plus)
        y_plus.addmm_(minus, self.sum.t(), alpha=-1)
        y_minus.addmm_(plus, self.difference.t())

    def backward(self, g: Tensor, x: Tensor, d_x: Tensor | None) -> None:
        """Write the gradient of x, (n, 2I), into ``d_x``, and add up that of the weights."""
        g_plus, g_minus = g.chunk(2, dim=1)
        both = g_plus + g_minus
        if d_x is not None:
            d_plus, d_minus = d_x.chunk(2, dim=1)
            torch.mm(both, self.real, out=d_plus)
            d_minus.copy_(d_plus)
            d_plus.addmm_(g_minus, self.difference)
            d_minus.addmm_(g_plus, self.sum, alpha=-1)
        if self.train:
            plus, minus = x.chunk(2, dim=1)
            pairs = ((both, plus), (g_minus, minus - plus), (g_plus, plus + minus))
            self.totals = [_sum(total, *pair) for total, pair in zip(self.totals, pairs)]

    def gradient(self) -> Tensor | None:
        """Of the weights, (2O, I); None if not ``train``."""
        if not self.train:
            return None
        first, second, third = self.totals
        self.totals = [None, None, None]
        if first is None or second is None or third is None:
            return torch.zeros_like(torch.cat([self.real, self.imaginary]))
        return torch.cat([second.add_(first), first.sub_(third)])


class ComplexMapInOne(RealMap):
    """The same map by one real matrix, [[W_r, -W_i], [W_i, W_r]].

    On a GPU a pass over memory costs more than the fourth product, and in half precision k above
    would lose digits.
    """

    def __init__(self, weight: Tensor, train: bool = False) -> None:
        real, imaginary = weight.chunk(2)
        joint = weight.new_empty(len(weight), 2 * weight.shape[1])
        left, right = joint.chunk(2, dim=1)
        above, below = right.chunk(2)
        left.copy_(weight)
        torch.neg(imaginary, out=above)
        below.copy_(real)
        super().__init__(joint, train)

    def gradient(self) -> Tensor | None:
        total = super().gradient()
        if total is None:
            return None
        (a, b), (c, d) = (half.chunk(2, dim=1) for half in total.chunk(2))
        made = total.new_empty(len(total), a.shape[1])
        real, imaginary = made.chunk(2)
        torch.add(a, d, out=real)
        torch.sub(c, b, out=imaginary)
        return made


def map_of(order: int, weight: Tensor, train: bool = False) -> RealMap | ComplexMap:
    """The map of an order with upstream's weights."""
    if order == 0:
        return RealMap(weight, train)
    return (ComplexMap if three_products(weight) else ComplexMapInOne)(weight, train)


def three_products(weight: Tensor) -> bool:
    """Whether :class:`ComplexMap` is the faster map, and as accurate as needed."""
    return weight.is_cpu and weight.dtype in (torch.float32, torch.float64)


def _sum(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """total + left^T right, written into ``total`` if there is one."""
    return left.t() @ right if total is None else total.addmm_(left.t(), right)
