"""Stands for a model from another repository: one class, from structures to energy and forces.

Nothing here knows of NDeM or of hydra. Its features, (N, 4, channels) with the scalars first and
then three vector components, go through ``self.norm`` on their way to the two output blocks.
"""

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import GraphModelMixin
from torch import nn


class Scale(nn.Module):
    """Divides by the size of the features; the vectors' directions stay what they are."""

    def forward(self, x):
        return x / (1 + x.square().sum(1, keepdim=True)).sqrt()


@registry.register_model("single_class_model")
class SingleClassModel(nn.Module, GraphModelMixin):
    def __init__(self, channels=32, cutoff=5.0, max_neighbors=50, use_pbc=True, otf_graph=True):
        super().__init__()
        self.channels, self.cutoff, self.max_neighbors = channels, cutoff, max_neighbors
        self.use_pbc, self.use_pbc_single, self.otf_graph = use_pbc, False, otf_graph
        self.species = nn.Embedding(100, channels)
        self.filter = nn.Linear(16, 2 * channels)
        self.norm = Scale()
        self.energy_block = nn.Sequential(nn.Linear(channels, channels), nn.SiLU())
        self.energy_out = nn.Linear(channels, 1)
        self.force_block = nn.Linear(channels, 1, bias=False)

    def forward(self, data):
        graph = self.generate_graph(data)
        j, i = graph.edge_index
        distance = graph.edge_distance[:, None] / self.cutoff
        waves = torch.sin(torch.pi * distance * torch.arange(1, 17, device=distance.device))
        h = self.species(data.atomic_numbers.long())
        weights = self.filter(waves) * (1 - distance).clamp_min(0) ** 2
        scalar, vector = (h[j].repeat(1, 2) * weights).chunk(2, dim=-1)
        unit = graph.edge_distance_vec / graph.edge_distance[:, None]
        messages = torch.cat([scalar[:, None], unit[:, :, None] * vector[:, None]], dim=1)
        x = messages.new_zeros(h.shape[0], 4, self.channels).index_add(0, i, messages)
        x = self.norm(torch.cat([x[:, :1] + h[:, None], x[:, 1:]], dim=1))

        per_atom = self.energy_out(self.energy_block(x[:, 0])).squeeze(-1)
        energy = per_atom.new_zeros(data.natoms.numel()).index_add(0, data.batch, per_atom)
        return {"energy": energy, "forces": self.force_block(x[:, 1:]).squeeze(-1)}
