"""SCN as a hydra backbone, and its auxiliary vector head."""

from __future__ import annotations

import torch
from e3nn import o3
from fairchem.core.common.registry import registry
from fairchem.core.models.base import BackboneInterface, HeadInterface
from fairchem.core.models.escn.escn import ForceBlock
from fairchem.core.models.scn.sampling import CalcSpherePoints
from fairchem.core.models.scn.scn import SphericalChannelNetwork
from torch import Tensor, nn
from torch_geometric.data import Batch

from ndem_ocp.models.heads import calls_of


@registry.register_model("ndem_scn_backbone")
class SCNBackbone(SphericalChannelNetwork, BackboneInterface):
    """fairchem's SCN, returning spherical features in addition to energy and forces.

    Heads: ``{module: ndem_output_head, output_name: energy}`` and the same for ``forces``, which
    are direct. Arguments are fairchem's. SCN is only approximately equivariant: each forward
    rotates every edge into a frame with a random angle, and its grid has few points.
    """

    ndem_auxiliary_head = "ndem_scn_vector_head"

    def forward(self, data: Batch) -> dict[str, Tensor]:
        """{node_embedding: (N, (lmax + 1)^2, C), energy: (B,), forces: (N, 3)}."""
        with calls_of(self.edge_blocks[-1]) as calls:
            output = super().forward(data)
        (before, *_), change = calls[0]
        # All blocks except the first have a residual connection.
        features = change if len(self.edge_blocks) == 1 else before + change
        return {"node_embedding": features, **output}


@registry.register_model("ndem_scn_vector_head")
class SCNVectorHead(nn.Module, HeadInterface):
    """eSCN's force block on SCN's features: a function on the sphere, averaged over directions.

    SCN's own force output has the same form, but it is part of the forward and not a head.

    Args:
        backbone: an :class:`SCNBackbone`.
    """

    def __init__(self, backbone: nn.Module, output_name: str = "forces") -> None:
        super().__init__()
        self.output_name = output_name
        points = CalcSpherePoints(backbone.num_sphere_samples)
        harmonics = o3.spherical_harmonics([*range(backbone.lmax + 1)], points, normalize=False)
        self.register_buffer("points", points, persistent=False)  # (P, 3)
        self.register_buffer("harmonics", harmonics, persistent=False)  # (P, (lmax + 1)^2)
        self.force_block = ForceBlock(
            backbone.sphere_channels, backbone.num_sphere_samples, nn.SiLU()
        )

    def forward(self, data: Batch, emb: dict[str, Tensor]) -> dict[str, Tensor]:
        """{output_name: (N, 3)}."""
        values = torch.einsum("nlc,pl->npc", emb["node_embedding"], self.harmonics)
        values = values.reshape(-1, values.shape[-1])
        return {self.output_name: self.force_block(values, self.points)}
