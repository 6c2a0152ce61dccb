"""Auxiliary heads for backbones without equivariant features: edge vectors weighted by scalars."""

from __future__ import annotations

from typing import NamedTuple

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import GraphModelMixin, HeadInterface
from fairchem.core.models.gemnet.layers.radial_basis import PolynomialEnvelope
from torch import Tensor, nn
from torch_geometric.data import Batch

from fairchem_kit.errors import ConfigError

# Attributes of backbones with the width of their embedding.
WIDTHS = ("hidden_channels", "sphere_channels")


class Edges(NamedTuple):
    """Directed edges j -> i with their vectors and features."""

    target: Tensor  # (E,) index of the receiving atom i
    vector: Tensor  # (E, 3) | from i to j, Angstrom
    length: Tensor  # (E,) | Angstrom
    features: Tensor  # (E, hidden_channels) invariant


@registry.register_model("ndem_edge_vector_head")
class EdgeVectorHead(nn.Module, GraphModelMixin, HeadInterface):
    """f_i = sum_j w(h_i, h_j, d_ij) r_ij / d_ij: a vector per atom from invariant features.

    Equivariant up to rounding, for any invariant w. The sum runs over the head's own radius graph
    (found with fairchem's search). w goes smoothly to zero at the cutoff, and the sum is divided by
    the square root of the number of neighbours, so that its initial size is at most of order 1.

    Args:
        backbone: its cutoff, max_neighbors, use_pbc and width are the defaults of the head.
        channels: width C of the node features; required if the backbone has no such attribute.
        features: name of the node features in the backbone's output: (N, C), or (N, L, C) with
            the scalars first, or a list of such tensors, which are concatenated.
        hidden_channels: width of w.
        num_radial: number of Gaussians in the basis for d_ij.
        cutoff: Angstrom.
        max_neighbors: largest number of edges per atom; the nearest are kept.

    Raises:
        ConfigError: if the width, the cutoff or max_neighbors is neither given nor an attribute of
            the backbone.
    """

    otf_graph = True

    def __init__(
        self,
        backbone: nn.Module,
        channels: int | None = None,
        features: str = "node_embedding",
        hidden_channels: int = 64,
        num_radial: int = 32,
        cutoff: float | None = None,
        max_neighbors: int | None = None,
        output_name: str = "forces",
    ) -> None:
        super().__init__()
        self.features = features
        self.output_name = output_name
        self.cutoff = _given("cutoff", cutoff, backbone)
        self.max_neighbors = _given("max_neighbors", max_neighbors, backbone)
        self.use_pbc = getattr(backbone, "use_pbc", True)
        self.use_pbc_single = getattr(backbone, "use_pbc_single", False)
        self.enforce_max_neighbors_strictly = getattr(
            backbone, "enforce_max_neighbors_strictly", True
        )
        channels = _given("channels", channels, backbone, WIDTHS)
        self.norm = nn.LayerNorm(channels)
        self.make_layers(channels, hidden_channels)
        centres = torch.linspace(0.0, 1.0, num_radial)
        self.register_buffer("centres", centres, persistent=False)
        self.radial = nn.Linear(num_radial, hidden_channels)
        self.envelope = PolynomialEnvelope(5)
        self.weight = nn.Sequential(
            nn.SiLU(),
            nn.Linear(hidden_channels, hidden_channels),
            nn.SiLU(),
            nn.Linear(hidden_channels, 1),
        )

    def make_layers(self, channels: int, hidden_channels: int) -> None:
        """Layers that :meth:`edges` needs."""
        self.source = nn.Linear(channels, hidden_channels, bias=False)
        self.target = nn.Linear(channels, hidden_channels, bias=False)

    def forward(self, data: Batch, emb: dict[str, Tensor]) -> dict[str, Tensor]:
        """{output_name: (N, 3)}."""
        edges = self.edges(data, emb)
        near = self.envelope(edges.length / self.cutoff)
        weight = self.weight(edges.features + self.radial(self._basis(edges.length)))
        unit = edges.vector / edges.length.clamp_min(1e-6)[:, None]
        total = unit.new_zeros(data.pos.shape[0], 3)
        total = total.index_add(0, edges.target, near[:, None] * weight * unit)
        neighbours = near.new_zeros(data.pos.shape[0]).index_add(0, edges.target, near)
        return {self.output_name: total / (1 + neighbours).sqrt()[:, None]}

    def edges(self, data: Batch, emb: dict[str, Tensor]) -> Edges:
        """Edges of the head's own radius graph, with features from both atoms of each edge."""
        nodes = self.norm(self._nodes(emb))
        graph = self.generate_graph(data)
        j, i = graph.edge_index
        vector, length = graph.edge_distance_vec, graph.edge_distance
        return Edges(i, vector, length, self.source(nodes)[j] + self.target(nodes)[i])

    def _nodes(self, emb: dict[str, Tensor]) -> Tensor:
        """(N, C) invariant node features in the head's own dtype."""
        if self.features not in emb:
            raise ConfigError(
                f"The backbone's output has no {self.features!r} (it has: {', '.join(emb)}): set "
                "features of ndem_edge_vector_head to the name of its node features."
            )
        value = emb[self.features]
        parts = value if isinstance(value, (list, tuple)) else [value]
        parts = [getattr(part, "embedding", part) for part in parts]
        parts = [part[:, 0] if part.dim() == 3 else part for part in parts]
        return torch.cat(parts, dim=-1).to(self.norm.weight.dtype)

    def _basis(self, length: Tensor) -> Tensor:
        """(E, num_radial) Gaussians from 0 to the cutoff, as wide as their spacing."""
        away = (length[:, None] / self.cutoff - self.centres) * (self.centres.numel() - 1)
        return torch.exp(-0.5 * away.square())


@registry.register_model("ndem_gemnet_vector_head")
class GemNetVectorHead(EdgeVectorHead):
    """The edge-vector head on the atom features of GemNet-T or GemNet-OC.

    It works with direct forces and with forces that are gradients. GemNet-T's own force head cannot
    be used: it has no weights (the backbone computes its scalars). Neither has a force output that
    is a gradient.
    """

    def __init__(self, backbone: nn.Module, **options: int | float | str | None) -> None:
        width = backbone.atom_emb.emb_size
        if hasattr(backbone, "quad_interaction"):  # GemNet-OC returns one embedding per block
            options = {
                "features": "xs_E",
                "channels": width * (len(backbone.int_blocks) + 1),
                **options,
            }
        super().__init__(backbone, **{"channels": width, **options})


@registry.register_model("ndem_dimenet_vector_head")
class DimeNetVectorHead(EdgeVectorHead):
    """The edge-vector head on DimeNet++'s own edges, whose embeddings contain the angles."""

    def __init__(self, backbone: nn.Module, **options: int | float | str | None) -> None:
        super().__init__(backbone, **{"channels": backbone.emb.lin.out_features, **options})

    def make_layers(self, channels: int, hidden_channels: int) -> None:
        self.edge = nn.Linear(channels, hidden_channels, bias=False)

    def edges(self, data: Batch, emb: dict[str, Tensor]) -> Edges:
        j, i = data.edge_index  # the backbone stores its graph in the batch
        cells = data.cell[data.batch[i]]
        shift = torch.einsum("ek,ekx->ex", data.cell_offsets.to(cells.dtype), cells)
        vector = data.pos[j] - data.pos[i] + shift
        embedding = emb["edge_embedding"].to(self.norm.weight.dtype)
        return Edges(i, vector, vector.norm(dim=-1), self.edge(self.norm(embedding)))


def _given(
    name: str, value: float | None, backbone: nn.Module, names: tuple[str, ...] | None = None
) -> int | float:
    """A setting of the head; if it is not given, an attribute of the backbone."""
    for candidate in names or (name,):
        if value is None:
            value = getattr(backbone, candidate, None)
    if value is None:
        raise ConfigError(
            f"{type(backbone).__name__} has no {name} for ndem_edge_vector_head: set it, as in "
            f"task.ndem.auxiliary_head: {{module: ndem_edge_vector_head, {name}: ...}}."
        )
    return value
