"""PaiNN's auxiliary vector head."""

from __future__ import annotations

from fairchem.core.common.registry import registry
from fairchem.core.models.base import HeadInterface
from fairchem.core.models.painn.painn import PaiNNOutput
from torch import Tensor, nn
from torch_geometric.data import Batch


@registry.register_model("ndem_painn_vector_head")
class PaiNNVectorHead(nn.Module, HeadInterface):
    """PaiNN's gated equivariant output on its vector features: always direct forces.

    With ``direct_forces: False`` fairchem's painn_force_head turns into a gradient head, and it
    differentiates the sum of the features and not the energy.

    Args:
        backbone: PaiNN backbone.
    """

    def __init__(self, backbone: nn.Module, output_name: str = "forces") -> None:
        super().__init__()
        self.output_name = output_name
        self.out_forces = PaiNNOutput(backbone.hidden_channels)

    def forward(self, data: Batch, emb: dict[str, Tensor]) -> dict[str, Tensor]:
        """{output_name: (N, 3)}."""
        vectors = self.out_forces(emb["node_embedding"], emb["node_vec"])
        return {self.output_name: vectors.view(-1, 3)}
