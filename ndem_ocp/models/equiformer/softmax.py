"""Softmax over the edges of each target, with its gradient."""

from __future__ import annotations

import torch
import torch_geometric
from torch import Tensor
from torch.autograd.function import once_differentiable

from ndem_ocp.models.equiformer import kernels
from ndem_ocp.models.equiformer.messages import ByNode, by_node


def edge_softmax(logits: Tensor, target: Tensor, num_nodes: int, of: ByNode | None) -> Tensor:
    """(E, H) weights, which sum to one over the edges of each target.

    Args:
        logits: (E, H)
        target: (E,)
        num_nodes: N.
        of: the edges of each node, if kernels may be used.
    """
    if not _kernel_agrees(logits, of):
        of = None
    return _EdgeSoftmax.apply(logits, target, num_nodes, of)


class _EdgeSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, num_nodes, of):
        ctx.of, ctx.num_nodes = of, num_nodes
        if of is None:
            weights = torch_geometric.utils.softmax(logits, target, num_nodes=num_nodes)
        else:
            from ndem_ocp.models.equiformer.kernels import softmax

            weights = softmax.softmax(logits, *of.target)
        ctx.save_for_backward(weights, target)
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        weights, target = ctx.saved_tensors
        if ctx.of is not None:
            from ndem_ocp.models.equiformer.kernels import softmax

            return softmax.softmax_backward(weights, g, *ctx.of.target), None, None, None
        given = weights * g
        mean = given.new_zeros(ctx.num_nodes, given.shape[1]).index_add_(0, target, given)
        return given.addcmul_(weights, mean.index_select(0, target), value=-1), None, None, None


def _kernel_agrees(logits: Tensor, of: ByNode | None) -> bool:
    if of is None:
        return False

    def compare() -> list[tuple[Tensor, Tensor]]:
        target = torch.arange(30, device=logits.device) // 7
        fused = by_node(target, target, 6)
        return kernels.both(
            lambda x: _EdgeSoftmax.apply(x, target, 6, fused),
            lambda x: _EdgeSoftmax.apply(x, target, 6, None),
            [kernels.wave((30, logits.shape[1]), logits)],
        )

    return kernels.agrees("edge softmax", logits, (logits.shape[1],), compare)
