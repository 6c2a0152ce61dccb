"""The two-view model: any fairchem ``hydra`` model, plus the auxiliary force head of NDeM."""

from __future__ import annotations

import copy
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HeadInterface, HydraModel
from torch import Tensor, nn
from torch_geometric.data import Batch

from fairchem_kit.errors import ConfigError
from ndem_ocp.models.views import EPS, JOINT, Views, join_views, split_output

# Attributes of the backbone that some of fairchem's heads change.
FORCE_SWITCHES = ("direct_forces", "regress_forces")
# Name of the auxiliary head and of its output, (N, 3), in checkpoints and configurations: f'(X~) in
# normalised force units with objective: ndem, the predicted noise with noisy_nodes and dens.
AUXILIARY_OUTPUT = "noisy_forces"
FORCES = "forces"
SHARED = "shared"


class AuxiliaryHead(nn.Module, HeadInterface):
    """f' of Eq. 17: a force head that only runs on batches with second views.

    Args:
        head: any hydra head that returns a vector per atom, (atoms, 3). Of several outputs, the one
            named noisy_forces or forces is used.
        learned_curvature: whether the factor c on eps* is a parameter (stored as its logarithm, so
            that c > 0); see :attr:`TwoViewHydra.curvature_factor`.
    """

    def __init__(self, head: nn.Module, learned_curvature: bool = False) -> None:
        super().__init__()
        self.head = head
        self.log_curvature = nn.Parameter(torch.zeros(())) if learned_curvature else None

    @property
    def use_amp(self) -> bool:
        return self.head.use_amp

    def forward(self, data: Batch, emb: dict[str, Tensor]) -> dict[str, Tensor]:
        """{noisy_forces: (atoms, 3)} for a batch with second views, else {}: free in evaluation."""
        if JOINT not in data:
            return {}
        output = dict(self.head(data, emb))
        names = output if len(output) == 1 else (AUXILIARY_OUTPUT, FORCES)
        name = next((name for name in names if name in output), None)
        if name is None:
            raise ConfigError(
                f"The auxiliary head must return one output, a vector per atom; it returns "
                f"{sorted(output)}."
            )
        noisy = output.pop(name)
        for other in output.values():
            # DDP needs a gradient of every parameter, even of the bias of an energy if forces
            # are its gradient.
            noisy = noisy + 0.0 * other.sum()
        return {AUXILIARY_OUTPUT: noisy}


@registry.register_model("ndem_hydra")
class TwoViewHydra(HydraModel):
    """A hydra model that can see X and X~ = X + eps in one forward.

    For a batch marked by :func:`ndem_ocp.models.views.with_second_view` it returns all outputs of
    the main heads on X, and the output of the auxiliary head on X~ as ``noisy_forces``, (N, 3),
    zero for structures without a second view. For any other batch it returns what the plain hydra
    model returns, at the same cost.

    Args:
        auxiliary_head: {"module": registered name, ...its arguments}, or {"module": "shared"} to
            use the main force head on X~ as well (the ablation of section 5.4.4).
        learned_curvature: see :class:`AuxiliaryHead`.
        force_head: name of the main force head under ``heads``; with pass_through_head_outputs,
            name of the output of any head.
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
            raise ConfigError(
                "NDeM needs graphs that are built on the fly, because X and X + eps have "
                "different edges: set model.backbone.otf_graph: True."
            )
        if self.shared:
            return
        head = self._auxiliary_head(module, arguments)
        self.output_heads[AUXILIARY_OUTPUT] = AuxiliaryHead(head, learned_curvature)

    def _auxiliary_head(self, module: str, arguments: dict[str, Any]) -> nn.Module:
        """Build the auxiliary head without changing anything else in the model.

        Raises:
            ConfigError: for a head without weights, or one that would change the main forces.
        """
        before = [getattr(self.backbone, name, None) for name in FORCE_SWITCHES]
        # All other weights, and random numbers drawn later, stay those of a run without NDeM.
        with torch.random.fork_rng():
            head = registry.get_model_class(module)(self.backbone, **arguments)
        if [getattr(self.backbone, name, None) for name in FORCE_SWITCHES] != before:
            raise ConfigError(
                f"The auxiliary head {module} changes the backbone's {' or '.join(FORCE_SWITCHES)} "
                "and thereby the main forces: choose another task.ndem.auxiliary_head.module."
            )
        if next(head.parameters(), None) is None:
            raise ConfigError(
                f"The auxiliary head {module} has no weights of its own with this backbone, so it "
                "would just be the main force head. Choose task.ndem.auxiliary_head.module: "
                "ndem_edge_vector_head, or task.ndem.head: shared if you want one head for both."
            )
        return head

    @property
    def curvature_factor(self) -> Tensor | None:
        """() learned factor c > 0 in f(X) - f'(X~) = c eps*, dimensionless; None if not learned.

        The curvature of Eq. 16 is c * (eps* / eps) * rms_F.
        """
        if self.shared or self.output_heads[AUXILIARY_OUTPUT].log_curvature is None:
            return None
        return self.output_heads[AUXILIARY_OUTPUT].log_curvature.exp()

    def no_weight_decay(self) -> list[str]:
        return [*super().no_weight_decay(), "log_curvature"]  # weight decay would pull c towards 1

    def forward(self, data: Batch) -> dict[str, Any]:
        if EPS not in data:
            out = super().forward(data)
            out.pop(AUXILIARY_OUTPUT, None)
            return out
        views = join_views(data)
        if self._heads_take_one_view():
            return self._heads_on_own_view(data, views)
        return self._split(super().forward(views.joint), views)

    def _heads_take_one_view(self) -> bool:
        """Whether each head can run on its own view alone, after one forward of the backbone."""
        heads = (getattr(head, "head", head) for head in self.output_heads.values())
        return (
            not self.shared
            and hasattr(self.backbone, "of_atoms")
            and all(getattr(head, "by_view", False) for head in heads)
        )

    def _heads_on_own_view(self, data: Batch, views: Views) -> dict[str, Any]:
        """One forward of the backbone over both views, then each head on its own view only."""
        emb = self.backbone(views.joint)  # shared by f and f' of Eq. 17
        clean = self.backbone.of_atoms(emb, slice(0, views.num_atoms))  # of X
        # of X~ = X + eps
        second = self.backbone.of_atoms(emb, slice(views.num_atoms, len(views.joint.pos)))
        out: dict[str, Any] = {}
        for name, head in self.output_heads.items():
            auxiliary = name == AUXILIARY_OUTPUT
            with torch.autocast(data.pos.device.type, enabled=head.use_amp):
                # f'(X~), or the energy and f(X)
                found = head(views.joint, second) if auxiliary else head(data, clean)
            out.update(found if self.pass_through_head_outputs or auxiliary else {name: found})
        out[AUXILIARY_OUTPUT] = _spread(out[AUXILIARY_OUTPUT], views)
        return out

    def _split(self, out: dict[str, Any], views: Views) -> dict[str, Any]:
        """Outputs of the main heads on X, and the auxiliary output on X~ for all N atoms."""
        second = self._main_forces(out) if self.shared else out.pop(AUXILIARY_OUTPUT)
        if isinstance(second, dict):
            second = second[AUXILIARY_OUTPUT]
        # f'(X~) of Eq. 17; what the auxiliary head gives on X is not used
        noisy = split_output(second, views)[1]
        # the main heads' energy and f(X) of Eq. 17
        clean: dict[str, Any] = {
            name: split_output(value, views)[0]
            if isinstance(value, Tensor)
            else {key: split_output(part, views)[0] for key, part in value.items()}
            for name, value in out.items()
        }
        clean[AUXILIARY_OUTPUT] = _spread(noisy, views)
        return clean

    def _main_forces(self, out: dict[str, Any]) -> Tensor:
        """The main head's forces on both views, (atoms, 3)."""
        forces = out.get(self.force_head)
        if isinstance(forces, dict):
            only = next(iter(forces.values())) if len(forces) == 1 else None
            forces = forces.get(FORCES, only)
        if forces is None:
            raise ConfigError(
                f"The model has no output {self.force_head!r} (it has: {', '.join(out)}): a "
                "gradient force head needs regress_forces: True and direct_forces: False."
            )
        return forces


def _spread(noisy: Tensor, views: Views) -> Tensor:
    """(N, 3) from the output for the M atoms of the second view; zero for all other atoms."""
    spread = noisy.new_zeros(views.num_atoms, 3)
    return spread.index_copy(0, views.second_atoms, noisy.view(-1, 3))
