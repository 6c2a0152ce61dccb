"""A faster backbone of EquiformerV2, with upstream's parameters and outputs."""

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

from fairchem_kit.errors import ConfigError
from ndem_ocp.models.equiformer.attention import edge_degree, radial_of
from ndem_ocp.models.equiformer.block import Structures, transformer_block
from ndem_ocp.models.equiformer.constants import grids_once
from ndem_ocp.models.equiformer.edges import Edges
from ndem_ocp.models.equiformer.frames import edge_frames
from ndem_ocp.models.equiformer.layout import layout
from ndem_ocp.models.equiformer.norm import layer_norm
from ndem_ocp.models.equiformer.radial import Radial, compute_ahead
from ndem_ocp.models.neighbors import NearestNeighbors
from ndem_ocp.models.views import FIRST_ATOMS

EDGES = "ndem_edges"  # key of the Edges in the output of the backbone


class _NoRotation(SO3_Rotation):
    """Raises an error for upstream's heads, which expect the rotations stored in the backbone."""

    def rotate(self, *_: Any) -> Tensor:
        raise ConfigError(
            "A head of fairchem that rotates features, such as equiformerV2_vector_head, does not "
            "run on ndem_ocp.EquiformerV2Backbone: use ndem_ocp.EquiformerV2ForceHead, or "
            "fairchem's backbone (model: equiformer_v2_backbone)."
        )

    rotate_inv = rotate


@registry.register_model("ndem_equiformer_v2_backbone")
class EquiformerV2Backbone(NearestNeighbors, UpstreamBackbone):
    """fairchem's EquiformerV2 backbone: its arguments, parameter names, shapes and outputs.

    A checkpoint of either can be loaded into the other, and with the same seed both give the same
    outputs and gradients, up to rounding. The edges are upstream's to the bit, but found faster
    (models/neighbors). The forward is our own: coefficients are never reordered, rotations and S2
    grids are computed in chunks and not stored, and linear maps that commute with the transform to
    the grid are applied to the coefficients.

    Raises:
        ConfigError: for several resolutions (more than one number in lmax_list), and for graph
            parallelism.
    """

    @wraps(UpstreamBackbone.__init__)  # keeps its signature, from which valid keys are read
    def __init__(self, *arguments: Any, **named: Any) -> None:
        with grids_once():
            super().__init__(*arguments, **named)
        if len(self.lmax_list) != 1:
            raise ConfigError(
                f"lmax_list = {self.lmax_list}: this EquiformerV2 takes one resolution. fairchem's "
                "(model: equiformer_v2_backbone) takes several."
            )
        self.layout = layout(self.lmax_list[0], self.mmax_list[0])
        for rotation in self.SO3_rotation:  # shared with all layers, and with heads
            rotation.__class__ = _NoRotation

    def forward(self, data: Batch) -> dict[str, Any]:
        """{node_embedding: SO3_Embedding (N, K, C), graph: GraphData, ndem_edges: Edges}."""
        if gp_utils.initialized():
            raise ConfigError(
                "This EquiformerV2 does not run graph-parallel; fairchem's (model: "
                "equiformer_v2_backbone) does."
            )
        species = data.atomic_numbers.long()
        if species.max() >= self.max_num_elements:
            raise ConfigError(
                f"A batch has atomic number {int(species.max())}, but the model has "
                f"max_num_elements: {self.max_num_elements}."
            )
        # with autocast to float16, fairchem's image offsets and distances would be 0.02 A off
        with torch.autocast(data.pos.device.type, enabled=False):
            graph = self.generate_graph(
                data, enforce_max_neighbors_strictly=self.enforce_max_neighbors_strictly
            )
        edges = self._edges(graph, species)
        if FIRST_ATOMS in data:  # heads need to know where the second view begins
            edges.first_edge(data[FIRST_ATOMS])
        if not (self.activation_checkpoint and torch.is_grad_enabled()):  # which computes twice
            compute_ahead(self._radials(), edges)
        x = self.first_embedding(data, species, edges)
        structures = Structures(data.batch, len(data.natoms))
        for block in self.blocks:
            if self.activation_checkpoint and torch.is_grad_enabled():
                x = checkpoint(transformer_block, block, x, edges, structures, use_reentrant=False)
            else:
                x = transformer_block(block, x, edges, structures)
        x = layer_norm(self.norm, x)
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

    def _radials(self) -> list[Radial]:
        first = self.edge_degree_embedding
        return [Radial(first.rad_func, first), *(radial_of(block.ga) for block in self.blocks)]

    def first_embedding(self, data: Batch, species: Tensor, edges: Edges) -> Tensor:
        """Node embedding before the first layer, from species and edge degrees, (N, K, C)."""
        x = edge_degree(self.edge_degree_embedding, edges, len(species))
        scalars = self.sphere_embedding(species)
        return torch.cat([x[:, :1] + scalars[:, None], x[:, 1:]], dim=1)

    def of_atoms(self, emb: dict[str, Any], atoms: slice) -> dict[str, Any]:
        """The outputs for a range of atoms without edges to other atoms; the graph is left out."""
        embedding = self._embedding(emb["node_embedding"].embedding[atoms])
        return {"node_embedding": embedding, EDGES: emb[EDGES].between(atoms)}

    def _embedding(self, x: Tensor) -> SO3_Embedding:
        """The node embedding in upstream's container, for heads that are not ours."""
        found = SO3_Embedding(0, self.lmax_list.copy(), self.sphere_channels, x.device, x.dtype)
        found.set_embedding(x)
        return found
