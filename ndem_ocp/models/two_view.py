"""The two-view model: any fairchem ``hydra`` model, plus the auxiliary force head of NDeM."""

from __future__ import annotations

import copy
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HeadInterface, HydraModel
from torch import Tensor, nn
from torch_geometric.data import Batch

from ndem_ocp.models.views import EPS, JOINT, Views, join_views, split_output

NOISY_FORCES = "noisy_forces"  # f'(X~), (N, 3) normalised
SHARED = "shared"


class AuxiliaryHead(nn.Module, HeadInterface):
    """f' of Eq. 17: a force head that works on batches of two views and sleeps on all others.

    Args:
        head: any hydra head with one (atoms, 3) output.
        learned_curvature: hold c of Eq. 16 as a parameter (its logarithm, so that c > 0).
    """

    def __init__(self, head: nn.Module, learned_curvature: bool = False) -> None:
        super().__init__()
        self.head = head
        self.log_curvature = nn.Parameter(torch.zeros(())) if learned_curvature else None

    @property
    def use_amp(self) -> bool:
        return self.head.use_amp

    def forward(self, data: Batch, emb: dict[str, Tensor]) -> dict[str, Tensor]:
        """{noisy_forces: (atoms, 3)} for a joint batch, {} for any other: no cost in evaluation."""
        if JOINT not in data:
            return {}
        output = self.head(data, emb)
        if len(output) != 1:
            raise ValueError(
                f"The auxiliary head must have one output, a vector per atom; it has "
                f"{sorted(output)}."
            )
        return {NOISY_FORCES: next(iter(output.values()))}


@registry.register_model("ndem_hydra")
class TwoViewHydra(HydraModel):
    """A hydra model that can see X and X~ = X + eps in one forward.

    A batch marked by :func:`ndem_ocp.models.views.with_second_view` gives every output of the
    main heads on X, and f'(X~) as ``noisy_forces``, (N, 3) with zeros for structures without a
    second view. Any other batch gives what the plain hydra model gives, at the same cost.

    Args:
        auxiliary_head: {"module": registered name, ...its arguments}, or {"module": "shared"} to
            let the main force head serve X~ as well (the ablation of section 5.4.4).
        learned_curvature: see :class:`AuxiliaryHead`.
        force_head: name of the main force head under ``heads``.
        **hydra: fairchem's HydraModel arguments (backbone, heads, ...).
    """

    def __init__(
        self,
        *,
        auxiliary_head: dict[str, Any],
        learned_curvature: bool = False,
        force_head: str = "forces",
        **hydra: Any,
    ) -> None:
        super().__init__(**hydra)
        self.force_head = force_head
        arguments = copy.deepcopy(auxiliary_head)
        module = arguments.pop("module")
        self.shared = module == SHARED
        if not getattr(self.backbone, "otf_graph", True):
            raise ValueError(
                "NDeM needs graphs that are built on the fly, because the edges of X are not "
                "those of X + eps: set model.backbone.otf_graph: True."
            )
        if self.shared:
            return
        # The other weights and everything drawn after them stay as they are without NDeM.
        with torch.random.fork_rng():
            head = registry.get_model_class(module)(self.backbone, **arguments)
        self.output_heads[NOISY_FORCES] = AuxiliaryHead(head, learned_curvature)

    @property
    def curvature(self) -> Tensor | None:
        """() learned c > 0 of Eq. 16, or None where it is implicit."""
        if self.shared or self.output_heads[NOISY_FORCES].log_curvature is None:
            return None
        return self.output_heads[NOISY_FORCES].log_curvature.exp()

    def no_weight_decay(self) -> list[str]:
        return [*super().no_weight_decay(), "log_curvature"]  # decay would pull c towards 1

    def forward(self, data: Batch) -> dict[str, Any]:
        if EPS not in data:
            out = super().forward(data)
            out.pop(NOISY_FORCES, None)
            return out
        views = join_views(data)
        return self._part(super().forward(views.joint), views)

    def _part(self, out: dict[str, Any], views: Views) -> dict[str, Any]:
        """Clean part of every output of the main heads, plus f'(X~) spread over the N atoms."""
        name = self.force_head if self.shared else NOISY_FORCES
        second = out[name] if self.shared else out.pop(name)
        if isinstance(second, dict):
            second = second[name]
        noisy = split_output(second, views)[1]
        clean: dict[str, Any] = {
            name: split_output(value, views)[0]
            if isinstance(value, Tensor)
            else {key: split_output(part, views)[0] for key, part in value.items()}
            for name, value in out.items()
        }
        spread = noisy.new_zeros(views.num_atoms, 3)
        clean[NOISY_FORCES] = spread.index_copy(0, views.second_atoms, noisy.view(-1, 3))
        return clean
