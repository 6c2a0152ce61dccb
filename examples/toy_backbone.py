"""A backbone of one's own for fairchem's hydra models: message passing on distances."""

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import BackboneInterface, GraphModelMixin, HeadInterface
from torch import nn


@registry.register_model("toy_backbone")
class ToyBackbone(nn.Module, GraphModelMixin, BackboneInterface):
    # All that NDeM asks for. Its features are invariant, so f' is made of edge vectors; the head
    # reads cutoff, max_neighbors and hidden_channels off the backbone.
    ndem_auxiliary_head = "ndem_edge_vector_head"

    def __init__(self, hidden_channels=64, cutoff=5.0, max_neighbors=50, use_pbc=True):
        super().__init__()
        self.hidden_channels = hidden_channels
        self.cutoff, self.max_neighbors = cutoff, max_neighbors
        self.use_pbc, self.use_pbc_single, self.otf_graph = use_pbc, False, True
        self.species = nn.Embedding(100, hidden_channels)
        self.filter = nn.Linear(16, hidden_channels)
        self.mix = nn.Sequential(nn.Linear(hidden_channels, hidden_channels), nn.SiLU())

    def forward(self, data):
        with torch.enable_grad():  # forces are a gradient, in evaluation as well
            data.pos.requires_grad_(True)
            graph = self.generate_graph(data)
            j, i = graph.edge_index
            distance = graph.edge_distance[:, None] / self.cutoff
            waves = torch.sin(torch.pi * distance * torch.arange(1, 17, device=distance.device))
            h = self.species(data.atomic_numbers.long())
            message = h[j] * self.filter(waves) * (1 - distance).clamp_min(0) ** 2
            return {"node_embedding": h + self.mix(torch.zeros_like(h).index_add(0, i, message))}


@registry.register_model("toy_energy_head")
class ToyEnergyHead(nn.Module, HeadInterface):
    def __init__(self, backbone):
        super().__init__()
        width = backbone.hidden_channels
        self.readout = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, data, emb):
        per_atom = self.readout(emb["node_embedding"]).squeeze(-1)
        energy = per_atom.new_zeros(data.natoms.numel()).index_add(0, data.batch, per_atom)
        return {"energy": energy}
