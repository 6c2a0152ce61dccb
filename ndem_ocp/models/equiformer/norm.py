"""The layer norm of EquiformerV2 (``layer_norm_sh``), with upstream's parameters.

Degree 0 has a layer norm of its own. All other degrees are divided by one number per node, the root
of a weighted mean of their squares. Upstream does this degree by degree, in 18 operations; here all
degrees are done at once, with a backward of their own.
"""

from __future__ import annotations

import torch
from fairchem.core.models.equiformer_v2.layer_norm import (
    EquivariantLayerNormArraySphericalHarmonics as LayerNorm,
)
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ndem_ocp.models.equiformer import kernels
from ndem_ocp.models.equiformer.autograd import without_autocast
from ndem_ocp.models.equiformer.constants import constant
from ndem_ocp.models.equiformer.linear import by_coefficient, by_degree

_scalars_backward = torch.ops.aten.native_layer_norm_backward


def layer_norm(module: nn.Module, x: Tensor) -> Tensor:
    """What the module returns, (N, K, C) -> (N, K, C).

    Args:
        module: any norm of fairchem's EquiformerV2; ``layer_norm_sh``, the usual one, is computed
            here, the others by themselves.
        x: (N, K, C)
    """
    if not _known(module, x):
        return module(x)
    first, bias = module.norm_l0.weight, module.norm_l0.bias
    return normalized(x, first, bias, module.affine_weight, _share(module, x), module.eps)


def _known(module: nn.Module, x: Tensor) -> bool:
    """Whether it is the layer norm computed here, and x is what it takes.

    Autocast does not change x: node features stay in the type of the parameters.
    """
    if type(module) is not LayerNorm or x.dtype not in (torch.float32, torch.float64):
        return False
    fits = x.shape[1:] == ((module.lmax + 1) ** 2, module.num_channels)
    return fits and (not module.affine or module.affine_weight.dtype == x.dtype)


def _share(module: LayerNorm, x: Tensor) -> Tensor:
    """(K - 1,) weight of each coefficient above degree 0 in the mean of squares."""
    if module.normalization == "component" and module.std_balance_degrees:
        return module.balance_degree_weight.view(-1).to(x.dtype)
    count = x.shape[1] - 1
    value = 1.0 if module.normalization == "norm" else 1 / max(1, count)
    return constant((value,) * count, x.dtype, x.device)


def normalized(
    x: Tensor, first: Tensor | None, bias: Tensor | None, weight: Tensor | None, share: Tensor,
    eps: float,
) -> Tensor:  # fmt: skip
    """The layer norm of degree 0, and the other degrees divided by the root of their mean square.

    Args:
        x: (N, K, C)
        first: (C,) weight of degree 0. None, as ``bias`` and ``weight``, if there are no weights.
        bias: (C,) of degree 0.
        weight: (L, C) of degrees 1 ... L.
        share: (K - 1,) of each coefficient above degree 0 in the mean square.
        eps: is added to mean squares.
    """
    inputs = (x, first, bias, weight, share, eps)
    if _kernel_agrees(*inputs):
        from ndem_ocp.models.equiformer.kernels import norm

        return norm.layer_norm(*inputs)
    return _LayerNorm.apply(*inputs)


def _kernel_agrees(
    x: Tensor, first: Tensor | None, bias: Tensor | None, weight: Tensor | None, share: Tensor,
    eps: float,
) -> bool:  # fmt: skip
    def compare() -> list[tuple[Tensor, Tensor]]:
        from ndem_ocp.models.equiformer.kernels import norm

        constants = (share.detach().clone(), eps)
        given = [kernels.wave((40, *x.shape[1:]), x)]
        for number, each in enumerate((first, bias, weight)):
            if each is not None:
                given.append(kernels.wave(tuple(each.shape), each, 3.0 + number))
        none = [None] * (4 - len(given))
        return kernels.both(
            lambda *inputs: norm.layer_norm(*inputs, *none, *constants),
            lambda *inputs: _LayerNorm.apply(*inputs, *none, *constants),
            given,
        )

    return kernels.agrees("layer norm", x, (*x.shape[1:], weight is None), compare)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx, x, first, bias, weight, share, eps):
        channels, out = x.shape[2], torch.empty_like(x)
        out[:, 0], mean, scale = torch.native_layer_norm(x[:, 0], (channels,), first, bias, eps)
        squares = torch.linalg.vector_norm(x[:, 1:], dim=2).square_()
        eps = constant((eps,), x.dtype, x.device)
        scales = torch.add(eps, squares @ share, alpha=1 / channels).rsqrt_()
        others = torch.mul(x[:, 1:], scales[:, None, None], out=out[:, 1:])
        if weight is not None:
            others *= _expanded(weight)
        ctx.save_for_backward(x, first, bias, weight, share, mean, scale, scales)
        return out

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, g):
        x, first, bias, weight, share, mean, scale, scales = ctx.saved_tensors
        channels, d_x, d_weight = x.shape[2], torch.empty_like(x), None
        needed = (True, *ctx.needs_input_grad[1:3])
        d_x[:, 0], d_first, d_bias = _scalars_backward(
            g[:, 0], x[:, 0], (channels,), mean, scale, first, bias, needed
        )
        others, g = x[:, 1:], g[:, 1:]
        products = (others * g).flatten(1)
        if weight is None:
            along = products.sum(1)
            d_others = g * scales[:, None, None]
        else:
            expanded = _expanded(weight)
            if ctx.needs_input_grad[3]:
                by_row = (scales @ products).view_as(expanded)
                d_weight = by_degree(by_row, len(weight), (1, len(weight) + 1), first=1)
            along = products @ expanded.flatten()
            d_others = (g * expanded).mul_(scales[:, None, None])
        # through the scale, which depends on all of them
        through = torch.outer(scales.pow(3).mul_(along), share)[:, :, None]
        torch.addcmul(d_others, others, through, value=-1 / channels, out=d_x[:, 1:])
        return d_x, d_first, d_bias, d_weight, None, None


def _expanded(weight: Tensor) -> Tensor:
    """(L, C) -> (K - 1, C), for each coefficient above degree 0."""
    return by_coefficient(weight, (1, len(weight) + 1), first=1)
