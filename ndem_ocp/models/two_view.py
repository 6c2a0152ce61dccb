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

# What some upstream heads set on their backbone.
FORCE_SWITCHES = ("direct_forces", "regress_forces")
NOISY_FORCES = "noisy_forces"  # f'(X~), (N, 3) normalised
FORCES = "forces"
SHARED = "shared"


class AuxiliaryHead(nn.Module, HeadInterface):
    """f' of Eq. 17: a force head that works on batches of two views and sleeps on all others.

    Args:
        head: any hydra head whose output is a vector per atom, (atoms, 3); if there are several
            outputs, the one named noisy_forces or forces.
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
        output = dict(self.head(data, emb))
        names = output if len(output) == 1 else (NOISY_FORCES, FORCES)
        name = next((name for name in names if name in output), None)
        if name is None:
            raise ValueError(
                f"The auxiliary head must have one output, a vector per atom; it has "
                f"{sorted(output)}."
            )
        noisy = output.pop(name)
        for other in output.values():
            # DDP wants a gradient for every parameter, such as the bias of an energy whose
            # gradient the forces are.
            noisy = noisy + 0.0 * other.sum()
        return {NOISY_FORCES: noisy}


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
        force_head: name of the main force output: of a head under ``heads``, or with
            pass_through_head_outputs of an output of any head.
        **hydra: fairchem's HydraModel arguments (backbone, heads, ...).
    """

    def __init__(
        self,
        *,
        auxiliary_head: dict[str, Any],
        learned_curvature: bool = False,
        force_head: str = FORCES,
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
        head = self._auxiliary_head(module, arguments)
        self.output_heads[NOISY_FORCES] = AuxiliaryHead(head, learned_curvature)

    def _auxiliary_head(self, module: str, arguments: dict[str, Any]) -> nn.Module:
        """The head that makes f'; the rest of the model is what it is without it.

        Raises:
            ValueError: for a head that has no weights, or that would change the main forces.
        """
        before = [getattr(self.backbone, name, None) for name in FORCE_SWITCHES]
        # The other weights and everything drawn after them stay as they are without NDeM.
        with torch.random.fork_rng():
            head = registry.get_model_class(module)(self.backbone, **arguments)
        if [getattr(self.backbone, name, None) for name in FORCE_SWITCHES] != before:
            raise ValueError(
                f"The auxiliary head {module} changes the backbone's {' or '.join(FORCE_SWITCHES)} "
                "and with it the main forces: choose another task.ndem.auxiliary_head.module."
            )
        if next(head.parameters(), None) is None:
            raise ValueError(
                f"The auxiliary head {module} has no weights of its own with this backbone, so f' "
                "would be the main force head. Choose task.ndem.auxiliary_head.module: "
                "ndem_edge_vector_head, or task.ndem.head: shared if one head for both is meant."
            )
        return head

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
        if self._heads_take_one_view():
            return self._each_its_view(data, views)
        return self._part(super().forward(views.joint), views)

    def _heads_take_one_view(self) -> bool:
        """Whether backbone and heads can work on one of two views that the backbone has seen."""
        heads = (getattr(head, "head", head) for head in self.output_heads.values())
        return (
            not self.shared
            and hasattr(self.backbone, "of_atoms")
            and all(getattr(head, "by_view", False) for head in heads)
        )

    def _each_its_view(self, data: Batch, views: Views) -> dict[str, Any]:
        """One forward of the backbone over both views; each head on the view that it is for."""
        emb = self.backbone(views.joint)
        clean = self.backbone.of_atoms(emb, slice(0, views.num_atoms))
        second = self.backbone.of_atoms(emb, slice(views.num_atoms, len(views.joint.pos)))
        out: dict[str, Any] = {}
        for name, head in self.output_heads.items():
            auxiliary = name == NOISY_FORCES
            with torch.autocast(data.pos.device.type, enabled=head.use_amp):
                found = head(views.joint, second) if auxiliary else head(data, clean)
            out.update(found if self.pass_through_head_outputs or auxiliary else {name: found})
        out[NOISY_FORCES] = _spread(out[NOISY_FORCES], views)
        return out

    def _part(self, out: dict[str, Any], views: Views) -> dict[str, Any]:
        """Clean part of every output of the main heads, plus f'(X~) spread over the N atoms."""
        second = self._main_forces(out) if self.shared else out.pop(NOISY_FORCES)
        if isinstance(second, dict):
            second = second[NOISY_FORCES]
        noisy = split_output(second, views)[1]
        clean: dict[str, Any] = {
            name: split_output(value, views)[0]
            if isinstance(value, Tensor)
            else {key: split_output(part, views)[0] for key, part in value.items()}
            for name, value in out.items()
        }
        clean[NOISY_FORCES] = _spread(noisy, views)
        return clean

    def _main_forces(self, out: dict[str, Any]) -> Tensor:
        """The main head's forces on both views, (atoms, 3)."""
        forces = out.get(self.force_head)
        if isinstance(forces, dict):
            only = next(iter(forces.values())) if len(forces) == 1 else None
            forces = forces.get(FORCES, only)
        if forces is None:
            raise ValueError(
                f"The model has no output {self.force_head!r} (it has: {', '.join(out)}): a "
                "gradient force head needs regress_forces: True and direct_forces: False."
            )
        return forces


def _spread(noisy: Tensor, views: Views) -> Tensor:
    """f'(X~) of the M atoms of the second view among the N atoms, zero for the others."""
    spread = noisy.new_zeros(views.num_atoms, 3)
    return spread.index_copy(0, views.second_atoms, noisy.view(-1, 3))
