"""SchNet as a hydra backbone."""

from __future__ import annotations

from fairchem.core.common.registry import registry
from fairchem.core.models.base import BackboneInterface
from fairchem.core.models.schnet import SchNetWrap
from torch import Tensor
from torch_geometric.data import Batch

from ndem_ocp.models.heads import calls_of


@registry.register_model("ndem_schnet_backbone")
class SchNetBackbone(SchNetWrap, BackboneInterface):
    """fairchem's SchNet, returning features in addition to energy and forces.

    Heads: ``{module: ndem_output_head, output_name: energy}`` and the same for ``forces``, which
    are the gradient of the energy. With ``regress_forces: False`` it has no forces; direct ones
    come from ``ndem_edge_vector_head``. Arguments are fairchem's.
    """

    ndem_auxiliary_head = "ndem_edge_vector_head"

    def forward(self, data: Batch) -> dict[str, Tensor]:
        """{node_embedding: (N, hidden_channels), energy: (B, 1), forces: (N, 3)}."""
        with calls_of(self.lin1) as calls:  # the first layer of SchNet's readout
            output = super().forward(data)
        (features,), _ = calls[0]
        return {"node_embedding": features, **output}
