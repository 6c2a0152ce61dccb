"""DeNS (Liao et al., TMLR 2024): models that take forces as an input and encode them.

In training some structures are corrupted, and the forces of the original structure on the corrupted
atoms are encoded into the backbone's node embedding. Everything else is the plain model; for a
batch without forces to encode, so is the whole model.
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

from fairchem_kit.errors import ConfigError
from ndem_ocp.method import NDeMSettings
from ndem_ocp.method.views import ENCODED_FORCES
from ndem_ocp.models import equiformer
from ndem_ocp.models.build import TWO_VIEW_NAMES, ModelConfigError, two_view_config
from ndem_ocp.models.equiformer.constants import index
from ndem_ocp.models.equiformer_names import BACKBONE
from ndem_ocp.models.two_view import TwoViewHydra

FORCE_EMBEDDING = "force_embedding"  # attribute of a backbone that encodes forces

DENS_MODEL = "ndem_ocp.models.dens.DeNSHydra"
DENS_NAMES = (DENS_MODEL, "ndem_dens_hydra")
DENS_BACKBONES = {
    "equiformer_v2_backbone": "ndem_ocp.models.dens.DeNSEquiformerV2Backbone",
    BACKBONE: "ndem_ocp.models.dens.DeNSOwnEquiformerV2Backbone",
}


class ForceEmbedding(nn.Module):
    """Encodes the force on each atom as node features of degrees 0 ... lmax.

        x_lm = w_l |F| / sqrt(3) * Y_lm(F / |F|)

    where the 2l + 1 components of Y_l have a mean square of one, so that degree 1 is w_1 F. There
    is one weight per degree and channel and no bias, so that a zero force gives exactly zero.

    Args:
        lmax: largest degree.
        channels: channels of the node embedding.
        weight_init: "normal" or "uniform", as in EquiformerV2.
    """

    def __init__(self, lmax: int, channels: int, weight_init: str) -> None:
        super().__init__()
        self.lmax = lmax
        weight = torch.empty(lmax + 1, channels, 1)  # as in fairchem's layer of the same name
        draw = nn.init.normal_ if weight_init == "normal" else (lambda w: nn.init.uniform_(w, -1))
        self.weight = nn.Parameter(draw(weight))

    def forward(self, forces: Tensor) -> Tensor:
        """(N, 3) forces -> (N, (lmax + 1)^2, channels)."""
        degrees = list(range(self.lmax + 1))
        harmonics = o3.spherical_harmonics(
            degrees, forces, normalize=True, normalization="component"
        )
        size = forces.norm(dim=-1, keepdim=True) / math.sqrt(3.0)
        rows = index([degree for degree in degrees for _ in range(2 * degree + 1)], forces)
        per_component = self.weight.squeeze(-1).index_select(0, rows)
        return (harmonics * size)[:, :, None] * per_component


class _EncodesForces:
    """An EquiformerV2 backbone with an embedding of forces.

    Parameter names are those of the plain backbone, plus ``force_embedding.weight``. For a batch
    without forces to encode, outputs are those of the plain backbone, to the bit.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        if len(self.lmax_list) != 1:
            raise ConfigError(
                f"DeNS needs a single resolution, one number in lmax_list: {self.lmax_list}."
            )
        # All other weights, and random numbers drawn later, stay those of the plain backbone.
        with torch.random.fork_rng():
            embedding = ForceEmbedding(self.lmax_list[0], self.sphere_channels, self.weight_init)
        setattr(self, FORCE_EMBEDDING, embedding)

    def encoded(self, data: Batch) -> Tensor:
        """(N, K, C) embedding of the forces in the batch."""
        return getattr(self, FORCE_EMBEDDING)(data[ENCODED_FORCES])


@registry.register_model("ndem_equiformer_v2_dens_backbone")
class DeNSEquiformerV2Backbone(_EncodesForces, EquiformerV2Backbone):
    """fairchem's EquiformerV2 backbone, with forces encoded into its first node embedding."""

    def forward(self, data: Batch) -> dict[str, Any]:
        if ENCODED_FORCES not in data:
            return super().forward(data)
        forces = self.encoded(data)

        # The first node embedding is the sum of a species and an edge-degree embedding, which both
        # run without activation checkpointing. The encoded forces are added to the second one.
        def add(_module: nn.Module, _inputs: tuple[Any, ...], output: SO3_Embedding) -> None:
            output.embedding = output.embedding + forces.to(output.embedding.dtype)

        handle = self.edge_degree_embedding.register_forward_hook(add)
        try:
            return super().forward(data)
        finally:
            handle.remove()


@registry.register_model("ndem_own_equiformer_v2_dens_backbone")
class DeNSOwnEquiformerV2Backbone(_EncodesForces, equiformer.EquiformerV2Backbone):
    """Our EquiformerV2 backbone, with forces encoded into its first node embedding."""

    def first_embedding(self, data: Batch, species: Tensor, edges: equiformer.Edges) -> Tensor:
        x = super().first_embedding(data, species, edges)
        return x + self.encoded(data).to(x.dtype) if ENCODED_FORCES in data else x


@registry.register_model("ndem_dens_hydra")
class DeNSHydra(TwoViewHydra):
    """A hydra model whose auxiliary head only runs on batches with forces to encode.

    Arguments are those of :class:`TwoViewHydra`. All heads see the same batch, and every output is
    for the positions in this batch.
    """

    def forward(self, data: Batch) -> dict[str, Any]:
        if ENCODED_FORCES in data:
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
            another objective, or has a backbone that cannot encode forces.
    """
    name = model.get("name")
    if name in DENS_NAMES:  # from a checkpoint: already built for DeNS
        return copy.deepcopy(model)
    if name in TWO_VIEW_NAMES:
        raise ModelConfigError(
            "This model was built for objective: ndem or noisy_nodes and cannot encode forces. "
            "Use that objective, or start from the plain model section (name: hydra)."
        )
    config = two_view_config(model, settings, auxiliary_head)
    backbone = (config.get("backbone") or {}).get("model")
    if backbone not in DENS_BACKBONES:
        raise ModelConfigError(
            "objective: dens encodes the forces of a structure as an input of the model, and the "
            f"backbone {backbone!r} cannot do this. It works with "
            f"{', '.join(DENS_BACKBONES)}. On this backbone use objective: ndem or noisy_nodes."
        )
    config["name"] = DENS_MODEL
    config["backbone"]["model"] = DENS_BACKBONES[backbone]
    return config
