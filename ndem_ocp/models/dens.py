"""DeNS (Liao et al., TMLR 2024): a model that can be told forces, and a batch that tells them.

In training some structures are corrupted and the model is told the forces of the original on the
corrupted atoms. The force enters the backbone's node embedding; everything else is the plain
model, and so is the whole model for a batch that tells nothing.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from e3nn import o3
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel
from fairchem.core.models.equiformer_v2.equiformer_v2 import EquiformerV2Backbone
from fairchem.core.models.equiformer_v2.so3 import SO3_Embedding
from torch import Tensor, nn
from torch_geometric.data import Batch

from ndem_ocp.method import NDeMSettings
from ndem_ocp.method.views import TOLD_FORCES
from ndem_ocp.models import equiformer
from ndem_ocp.models.build import TWO_VIEW_NAMES, ModelConfigError, two_view_config
from ndem_ocp.models.two_view import TwoViewHydra
from ndem_ocp.models.variant import BACKBONE

FORCE_EMBEDDING = "force_embedding"  # attribute of a backbone that can be told forces

DENS_MODEL = "ndem_ocp.models.dens.DeNSHydra"
DENS_NAMES = (DENS_MODEL, "ndem_dens_hydra")
DENS_BACKBONES = {
    "equiformer_v2_backbone": "ndem_ocp.models.dens.DeNSEquiformerV2Backbone",
    BACKBONE: "ndem_ocp.models.dens.DeNSOwnEquiformerV2Backbone",
}


class ForceEmbedding(nn.Module):
    """Per-atom forces as node features of degrees 0 ... lmax.

        x_lm = w_l |F| / sqrt(3) * Y_lm(F / |F|)

    with Y normalised to 2l + 1 components of mean square one, so that degree 1 is w_1 F. One
    weight per degree and channel, no bias: a force of zero gives exactly zero.

    Args:
        lmax: largest degree.
        channels: channels of the node embedding.
        weight_init: "normal" or "uniform", as in EquiformerV2.
    """

    def __init__(self, lmax: int, channels: int, weight_init: str) -> None:
        super().__init__()
        self.lmax = lmax
        weight = torch.empty(lmax + 1, channels, 1)  # the shape of fairchem's layer of this name
        draw = nn.init.normal_ if weight_init == "normal" else (lambda w: nn.init.uniform_(w, -1))
        self.weight = nn.Parameter(draw(weight))

    def forward(self, forces: Tensor) -> Tensor:
        """(N, 3) forces -> (N, (lmax + 1)^2, channels)."""
        degrees = list(range(self.lmax + 1))
        harmonics = o3.spherical_harmonics(
            degrees, forces, normalize=True, normalization="component"
        )
        size = forces.norm(dim=-1, keepdim=True) / math.sqrt(3.0)
        counts = torch.tensor([2 * degree + 1 for degree in degrees], device=forces.device)
        per_component = self.weight.squeeze(-1).repeat_interleave(counts, dim=0)
        return (harmonics * size)[:, :, None] * per_component


class _Told:
    """An EquiformerV2 backbone with an embedding for told forces.

    Parameter names are the plain backbone's, plus ``force_embedding.weight``. A batch without
    told forces is treated as by the plain backbone, to the bit.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        if len(self.lmax_list) != 1:
            raise ValueError(f"Told forces need one resolution: lmax_list = {self.lmax_list}.")
        # The other weights and everything drawn after them stay those of the plain backbone.
        with torch.random.fork_rng():
            embedding = ForceEmbedding(self.lmax_list[0], self.sphere_channels, self.weight_init)
        setattr(self, FORCE_EMBEDDING, embedding)

    def told(self, data: Batch) -> Tensor:
        """(N, K, C) embedding of the told forces."""
        return getattr(self, FORCE_EMBEDDING)(data[TOLD_FORCES])


@registry.register_model("ndem_equiformer_v2_dens_backbone")
class DeNSEquiformerV2Backbone(_Told, EquiformerV2Backbone):
    """fairchem's EquiformerV2 backbone, which adds told forces to its first node embedding."""

    def forward(self, data: Batch) -> dict[str, Any]:
        if TOLD_FORCES not in data:
            return super().forward(data)
        told = self.told(data)

        # The first node embedding is a sum of two, species and edge degree; neither runs under
        # activation checkpointing. The told forces join the second.
        def add(_module: nn.Module, _inputs: tuple[Any, ...], output: SO3_Embedding) -> None:
            output.embedding = output.embedding + told.to(output.embedding.dtype)

        handle = self.edge_degree_embedding.register_forward_hook(add)
        try:
            return super().forward(data)
        finally:
            handle.remove()


@registry.register_model("ndem_own_equiformer_v2_dens_backbone")
class DeNSOwnEquiformerV2Backbone(_Told, equiformer.EquiformerV2Backbone):
    """Our EquiformerV2 backbone, which adds told forces to its first node embedding."""

    def first_embedding(self, data: Batch, species: Tensor, edges: equiformer.Edges) -> Tensor:
        x = super().first_embedding(data, species, edges)
        return x + self.told(data).to(x.dtype) if TOLD_FORCES in data else x


@registry.register_model("ndem_dens_hydra")
class DeNSHydra(TwoViewHydra):
    """A hydra model whose auxiliary head works on batches that tell forces, and on no others.

    Arguments are those of :class:`TwoViewHydra`. All heads see the one batch; every output is for
    its own positions.
    """

    def forward(self, data: Batch) -> dict[str, Any]:
        if TOLD_FORCES in data:
            return HydraModel.forward(self, data)
        return super().forward(data)


def dens_config(
    model: dict[str, Any], settings: NDeMSettings, auxiliary_head: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The model configuration that trains with DeNS (a new dict).

    Args:
        model: fairchem's ``model`` section, ``name: hydra``.
        settings: of ``objective: dens``.
        auxiliary_head: as for :func:`ndem_ocp.models.two_view_config`.

    Raises:
        ModelConfigError: if the model is not a hydra model, has no main force head, was built for
            another objective, or has a backbone that cannot be told forces.
    """
    name = model.get("name")
    if name in DENS_NAMES:  # from a checkpoint: already built for DeNS
        return copy.deepcopy(model)
    if name in TWO_VIEW_NAMES:
        raise ModelConfigError(
            "This model was built for objective: ndem or noisy_nodes and cannot be told forces. "
            "Use its objective, or start from the plain model section (name: hydra)."
        )
    config = two_view_config(model, settings, auxiliary_head)
    backbone = (config.get("backbone") or {}).get("model")
    if backbone not in DENS_BACKBONES:
        raise ModelConfigError(
            f"objective: dens tells the model the forces of a structure, and the backbone "
            f"{backbone!r} cannot be told: it needs a class that adds an encoding of a vector per "
            f"atom to its node embedding. Those that have one: {', '.join(DENS_BACKBONES)}. "
            "objective: ndem and noisy_nodes run on this backbone."
        )
    config["name"] = DENS_MODEL
    config["backbone"]["model"] = DENS_BACKBONES[backbone]
    return config
