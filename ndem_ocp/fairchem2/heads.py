"""Auxiliary heads: a vector per atom from the backbone's embeddings, such as f' of Eq. 17."""

from __future__ import annotations

from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import HeadInterface, HydraModel
from fairchem.core.models.uma.escn_md import Linear_Force_Head, eSCNMDBackbone
from fairchem.core.models.uma.escn_md_block import SpectralAtomwise
from fairchem.core.models.uma.escn_moe import DatasetSpecificMoEWrapper
from torch import Tensor, nn

from ndem_ocp.fairchem2.views import SECOND
from ndem_ocp.method import SettingsError

# Name of the auxiliary head and of its output, (M, 3) for the atoms of the second view, in
# checkpoints: f'(X~) in normalised units with objective: ndem, the noise with noisy_nodes.
AUXILIARY_OUTPUT = "noisy_forces"
SPHERICAL = "ndem_ocp.fairchem2.heads.SphericalForceHead"


class SphericalForceHead(nn.Module, HeadInterface):
    """A feed-forward network on spherical-harmonic embeddings, of which the l = 1 part is returned.

    The default for eSCN-MD and its mixtures of experts (eSEN, UMA), whose heads have no edges.

    Args:
        backbone: with ``sphere_channels``, ``lmax`` >= 1 and ``mmax``.
        width: hidden channels as a fraction of the sphere channels.
    """

    def __init__(self, backbone: nn.Module, width: float = 1.0) -> None:
        super().__init__()
        channels = backbone.sphere_channels
        hidden = max(1, round(width * channels))
        self.block = SpectralAtomwise(channels, hidden, backbone.lmax, backbone.mmax, None)
        self.out = Linear_Force_Head(backbone)

    def forward(self, data: AtomicData, emb: dict[str, Tensor]) -> dict[str, Tensor]:
        """{forces: (atoms, 3)}"""
        x = emb["node_embedding"]
        return self.out(data, {**emb, "node_embedding": x + self.block(x)})


class AuxiliaryHead(nn.Module, HeadInterface):
    """A head that only runs on batches with second views.

    Args:
        head: returns a vector per atom. Several outputs (one per data set) are added, because each
            is 0 for atoms of other data sets.
        learned_curvature: whether the factor c > 0 in f(X) - f'(X~) = c eps* is a parameter (stored
            as its logarithm).
    """

    def __init__(self, head: nn.Module, learned_curvature: bool = False) -> None:
        super().__init__()
        self.head = head
        self.log_curvature = nn.Parameter(torch.zeros(())) if learned_curvature else None

    @property
    def use_amp(self) -> bool:
        return self.head.use_amp

    def forward(self, data: AtomicData, emb: dict[str, Tensor]) -> dict[str, Tensor]:
        """{noisy_forces: (atoms, 3)} for a batch with second views, {} for any other."""
        if SECOND not in data:
            return {}
        parts = [part for name, part in self.head(data, emb).items() if name.endswith("forces")]
        return {AUXILIARY_OUTPUT: torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]}


def build_head(model: HydraModel, given: dict[str, Any] | None) -> nn.Module:
    """Build the head in ``ndem.auxiliary_head``, with weights of its own.

    If the model has a main head per data set (``DatasetSpecificMoEWrapper``, as in some UMA
    models), it has an auxiliary head per data set as well. Random numbers drawn later are the same
    as without this head.

    Raises:
        SettingsError: for an unknown head, or arguments that it does not have.
    """
    arguments = dict(given or {})
    module = arguments.pop("module", None)
    if module is None:
        if not isinstance(model.backbone, eSCNMDBackbone):
            raise SettingsError(
                f"task.ndem.auxiliary_head: the backbone {type(model.backbone).__name__} has no "
                "default head. Name a direct force head that works with it: {module: "
                "package.module.Class, ...its arguments}."
            )
        module = SPHERICAL
    wrapper = next(
        (h for h in model.output_heads.values() if isinstance(h, DatasetSpecificMoEWrapper)), None
    )
    with torch.random.fork_rng():
        try:
            if wrapper is None:
                return registry.get_model_class(module)(model.backbone, **arguments)
            return DatasetSpecificMoEWrapper(
                model.backbone,
                head_cls=module,
                wrap_property=False,
                head_kwargs=arguments,
                dataset_mapping=_mapping_of(wrapper),
            )
        except (AttributeError, ImportError, KeyError, RuntimeError, TypeError) as error:
            raise SettingsError(
                f"task.ndem.auxiliary_head: {module} cannot be built with {arguments} ({error})."
            ) from error


def _mapping_of(wrapper: DatasetSpecificMoEWrapper) -> dict[str, str]:
    """{data set: first of the data sets that share its head}."""
    first: dict[int, str] = {}
    for name in wrapper.dataset_names:
        first.setdefault(wrapper.dataset_name_to_exp[name], name)
    return {name: first[number] for name, number in wrapper.dataset_name_to_exp.items()}
