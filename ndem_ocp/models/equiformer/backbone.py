"""EquiformerV2's backbone, faster: upstream's parameters, upstream's function."""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from fairchem.core.common import gp_utils
from fairchem.core.common.registry import registry
from fairchem.core.models.equiformer_v2.equiformer_v2 import (
    EquiformerV2Backbone as UpstreamBackbone,
)
from fairchem.core.models.equiformer_v2.so3 import SO3_Embedding, SO3_Rotation
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch_geometric.data import Batch

from ndem_ocp.models.equiformer.attention import edge_degree
from ndem_ocp.models.equiformer.block import transformer_block
from ndem_ocp.models.equiformer.edges import Edges
from ndem_ocp.models.equiformer.frames import edge_frames
from ndem_ocp.models.equiformer.layout import layout
from ndem_ocp.models.neighbors import NearestNeighbors
from ndem_ocp.models.views import FIRST_ATOMS

EDGES = "ndem_edges"  # key of the Edges among a backbone's outputs


class _NoRotation(SO3_Rotation):
    """Frames are an argument here; a module that looks for them in the backbone is upstream's."""

    def rotate(self, *_: Any) -> Tensor:
        raise ValueError(
            "A head of fairchem that rotates features, such as equiformerV2_vector_head, does not "
            "run on ndem_ocp.EquiformerV2Backbone: use ndem_ocp.EquiformerV2ForceHead, or "
            "fairchem's backbone (model: equiformer_v2_backbone)."
        )

    rotate_inv = rotate


@registry.register_model("ndem_equiformer_v2_backbone")
class EquiformerV2Backbone(NearestNeighbors, UpstreamBackbone):
    """fairchem's EquiformerV2 backbone: its arguments, parameter names, shapes and outputs.

    A checkpoint of either loads into the other, and with the same seed both give the same outputs
    and gradients to rounding. The edges are upstream's to the bit, found faster (models/neighbors).
    The forward is ours (this package): nothing is reordered, rotations and S2 grids are made piece
    by piece and not kept, and linear maps that commute with the grid are taken out of it.

    Raises:
        ValueError: for several resolutions (lists of more than one lmax), or graph parallelism.
    """

    @wraps(UpstreamBackbone.__init__)  # its signature: what a configuration may say
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        if len(self.lmax_list) != 1:
            raise ValueError(
                f"lmax_list = {self.lmax_list}: this EquiformerV2 has one resolution. Upstream's "
                "(model: equiformer_v2_backbone) takes several."
            )
        self.layout = layout(self.lmax_list[0], self.mmax_list[0])
        for rotation in self.SO3_rotation:  # shared with all layers, and with heads
            rotation.__class__ = _NoRotation

    def forward(self, data: Batch) -> dict[str, Any]:
        """{node_embedding: SO3_Embedding (N, K, C), graph: GraphData, ndem_edges: Edges}."""
        if gp_utils.initialized():
            raise ValueError(
                "This EquiformerV2 does not run graph-parallel; upstream's (model: "
                "equiformer_v2_backbone) does."
            )
        species = data.atomic_numbers.long()
        if species.max() >= self.max_num_elements:
            raise ValueError(
                f"Atomic number {int(species.max())} in a batch, and the model has "
                f"max_num_elements: {self.max_num_elements}."
            )
        # fairchem computes image offsets and distances in autocast's type, 0.02 A off in float16
        with torch.autocast(data.pos.device.type, enabled=False):
            graph = self.generate_graph(
                data, enforce_max_neighbors_strictly=self.enforce_max_neighbors_strictly
            )
        edges = self._edges(graph, species)
        if FIRST_ATOMS in data:  # heads will ask where the second view begins
            edges.first_edge(data[FIRST_ATOMS])
        x = self.first_embedding(data, species, edges)
        for block in self.blocks:
            if self.activation_checkpoint and torch.is_grad_enabled():
                x = checkpoint(transformer_block, block, x, edges, data.batch, use_reentrant=False)
            else:
                x = transformer_block(block, x, edges, data.batch)
        x = self.norm(x)
        graph.edge_distance = edges.distance
        return {"node_embedding": self._embedding(x), "graph": graph, EDGES: edges}

    def _edges(self, graph: Any, species: Tensor) -> Edges:
        source, target = graph.edge_index
        frames = edge_frames(graph.edge_distance_vec, self.layout)
        distance = self.distance_expansion(graph.edge_distance)
        if self.share_atom_edge_embedding and self.use_atom_edge_embedding:
            ends = self.source_embedding(species[source]), self.target_embedding(species[target])
            distance = torch.cat([distance, *ends], dim=1)
        return Edges(
            source, target, distance, species[source], species[target], frames, self.layout,
            len(species),
        )  # fmt: skip

    def first_embedding(self, data: Batch, species: Tensor, edges: Edges) -> Tensor:
        """Species and edges, before the first layer, (N, K, C)."""
        x = edge_degree(self.edge_degree_embedding, edges, len(species))
        scalars = self.sphere_embedding(species)
        return torch.cat([x[:, :1] + scalars[:, None], x[:, 1:]], dim=1)

    def of_atoms(self, emb: dict[str, Any], atoms: slice) -> dict[str, Any]:
        """The outputs for a run of atoms that has edges with no others, without the graph."""
        embedding = self._embedding(emb["node_embedding"].embedding[atoms])
        return {"node_embedding": embedding, EDGES: emb[EDGES].between(atoms)}

    def _embedding(self, x: Tensor) -> SO3_Embedding:
        """Upstream's container, for heads of others."""
        found = SO3_Embedding(0, self.lmax_list.copy(), self.sphere_channels, x.device, x.dtype)
        found.set_embedding(x)
        return found
