"""Heads for our EquiformerV2: upstream's parameters and outputs, without unnecessary work."""

from __future__ import annotations

from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.equiformer_v2.heads import EqV2ScalarHead, EqV2VectorHead
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from torch_geometric.data import Batch

from fairchem_kit.errors import ConfigError
from ndem_ocp.models.equiformer.attention import graph_attention
from ndem_ocp.models.equiformer.backbone import EDGES
from ndem_ocp.models.equiformer.block import feed_forward, scalar_gate
from ndem_ocp.models.equiformer.edges import Edges


class _ZeroGradient(torch.autograd.Function):
    """The identity; gives parameters that it does not depend on a gradient of zero."""

    @staticmethod
    def forward(ctx, x, *parameters):
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return (g, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors))


@registry.register_model("ndem_equiformer_v2_energy_head")
class EquiformerV2EnergyHead(EqV2ScalarHead):
    """fairchem's scalar head, with the same parameters and output.

    It only needs degree 0 of its feed-forward network. With the separable grid MLP degree 0 does
    not pass through the grid, so two small layers remain. The other parameters get a zero gradient,
    as upstream.
    """

    by_view = True  # can run on one view of a joint batch (TwoViewHydra)

    def forward(self, data: Batch, emb: dict[str, Any]) -> dict[str, Tensor]:
        """{output_name: (B,)} normalised."""
        x = emb["node_embedding"].embedding
        per_atom = self._per_atom(x, emb.get(EDGES)).view(-1)
        total = torch.zeros(len(data.natoms), device=x.device, dtype=per_atom.dtype)
        total.index_add_(0, data.batch, per_atom)
        if self.reduce == "sum":
            return {self.output_name: total / self.avg_num_nodes}
        if self.reduce == "mean":
            return {self.output_name: total / data.natoms}
        raise ConfigError(f"reduce = {self.reduce!r}: must be sum or mean.")

    def _per_atom(self, x: Tensor, edges: Edges | None) -> Tensor:
        network = self.energy_block
        gate = scalar_gate(network, x) if network.use_grid_mlp else None
        if gate is None:
            return feed_forward(network, x, edges)[:, 0]
        out = linear(gate, network.so3_linear_2.weight[0], network.so3_linear_2.bias)
        if not torch.is_grad_enabled():
            return out
        idle = [*network.so3_linear_1.parameters(), *network.grid_mlp.parameters()]
        return _ZeroGradient.apply(out, *idle)


@registry.register_model("ndem_equiformer_v2_force_head")
class EquiformerV2ForceHead(EqV2VectorHead):
    """fairchem's vector head, with the same parameters and output; only computes degree 1.

    On fairchem's own backbone it runs fairchem's code.
    """

    by_view = True

    def forward(self, data: Batch, emb: dict[str, Any]) -> dict[str, Tensor]:
        """{output_name: (N, 3)} normalised."""
        if EDGES not in emb:
            return super().forward(data, emb)
        x = emb["node_embedding"].embedding
        arguments = (self.force_block, x, emb[EDGES], (1, 2))
        if self.activation_checkpoint and torch.is_grad_enabled():
            out = checkpoint(graph_attention, *arguments, use_reentrant=False)
        else:
            out = graph_attention(*arguments)
        out = out.reshape(-1, 3)
        if torch.is_grad_enabled():
            # not used: orders above 1 of the second convolution, and the bias of degree 0
            orders = self.force_block.so2_conv_2.so2_m_conv[1:]
            idle = [part.fc.weight for part in orders]
            out = _ZeroGradient.apply(out, *idle, self.force_block.proj.bias)
        return {self.output_name: out}
