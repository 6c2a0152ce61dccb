"""fairchem's HydraModel, extended to see X and X~ = X + eps in one forward."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import HydraModel
from torch import Tensor, nn

from ndem_ocp.fairchem2.heads import AUXILIARY_OUTPUT, AuxiliaryHead, build_head
from ndem_ocp.fairchem2.routing import has_experts, joint_routing, same_routing
from ndem_ocp.fairchem2.section import FORCES
from ndem_ocp.fairchem2.views import EPS, Views, first_part, join_views, second_view
from ndem_ocp.method import NDeMSettings

PAIR = "pair"  # name of the output [f(X), f'(X~)], (N, 6)


def pair_name(task: str) -> str:
    """Name of the output with a task's forces on X and on X~.

    It contains the task's name, because fairchem only masks atoms without labels (N, 3) if a name
    contains "forces".
    """
    return f"ndem_{task}"


class TwoViewHydra(HydraModel):
    """A hydra model with an auxiliary head for second views; made by :func:`add_second_view`.

    For a batch with ``EPS`` and ``VIEWED`` it returns all outputs of the main heads on X and, for
    each force task, ``ndem_<task>: {pair: (N, 6)}``: f(X) and f'(X~), which is 0 for atoms without
    a second view. For any other batch it returns what the plain model returns, at the same cost.

    * Direct forces: one pass of the backbone over both views.
    * Forces that are gradients: the usual pass over X, and one over X~ without gradients of the
      energy, so that second derivatives are only computed for X.
    """

    force_tasks: tuple[str, ...]
    shared: bool

    @property
    def auxiliary(self) -> list[nn.Parameter]:
        """Parameters that the plain model does not have."""
        return [] if self.shared else list(self.output_heads[AUXILIARY_OUTPUT].parameters())

    @property
    def log_curvature(self) -> nn.Parameter | None:
        """() logarithm of the learned factor c in f(X) - f'(X~) = c eps*; None if not learned."""
        return None if self.shared else self.output_heads[AUXILIARY_OUTPUT].log_curvature

    def forward(self, data: AtomicData) -> dict[str, Any]:
        views = second_view(data) if EPS in data else None
        if views is None:
            out = self._plain(data)
            noisy = dict.fromkeys(self.force_tasks, data.pos.new_zeros(data.pos.shape))
        elif self._two_passes():
            out, noisy = self._each_alone(data, views)
        else:
            out, noisy = self._both_at_once(data, views)
        if EPS in data:
            for name in self.force_tasks:
                main = out[name][FORCES].view(-1, 3)
                out[pair_name(name)] = {PAIR: torch.cat([main, noisy[name].to(main.dtype)], dim=1)}
        return out

    def _plain(self, data: AtomicData) -> dict[str, Any]:
        out = super().forward(data)
        out.pop(AUXILIARY_OUTPUT, None)
        if self.training and self.auxiliary:
            # DDP needs a gradient of every parameter in every step; this one is 0.
            nothing = 0.0 * sum(parameter.sum() for parameter in self.auxiliary)
            name = self.force_tasks[0]
            out[name] = {**out[name], FORCES: out[name][FORCES] + nothing}
        return out

    def _two_passes(self) -> bool:
        if self.shared or not conserving(self.backbone):
            return False
        # Checkpointed layers run again in the backward, with the routing of the last pass.
        return not (has_experts(self.backbone) and _checkpointed(self.backbone))

    def _each_alone(self, data: AtomicData, views: Views) -> tuple[dict, dict[str, Tensor]]:
        count = len(data.pos)
        out = super().forward(data)
        out.pop(AUXILIARY_OUTPUT, None)
        head = self.output_heads[AUXILIARY_OUTPUT]
        with without_forces(self.backbone), same_routing(self.backbone, views.structures):
            emb = self.backbone(views.second)
            with torch.autocast(device_type=self.device, enabled=head.use_amp):
                second = head(views.second, emb)[AUXILIARY_OUTPUT]
        return out, dict.fromkeys(self.force_tasks, _spread(second, views, count))

    def _both_at_once(self, data: AtomicData, views: Views) -> tuple[dict, dict[str, Tensor]]:
        atoms, structures = len(data.pos), data.natoms.numel()
        joint = join_views(data, views)
        rows = {
            atoms + len(views.atoms): atoms,
            structures + len(views.structures): structures,
        }
        with joint_routing(self.backbone, structures, atoms, views.structures):
            whole = super().forward(joint)
        if self.shared:
            found = {name: whole[name][FORCES] for name in self.force_tasks}
        else:
            second = whole.pop(AUXILIARY_OUTPUT)
            second = second[AUXILIARY_OUTPUT] if isinstance(second, dict) else second
            found = dict.fromkeys(self.force_tasks, second)
        # The backbone stores these in the batch it sees, and energy references read them there.
        data["atomic_numbers_full"], data["batch_full"] = data.atomic_numbers, data.batch
        noisy = {
            name: _spread(both.view(-1, 3)[atoms:], views, atoms) for name, both in found.items()
        }
        return first_part(whole, rows), noisy


def add_second_view(
    model: HydraModel,
    settings: NDeMSettings,
    auxiliary_head: dict[str, Any] | None,
    force_tasks: Sequence[str],
) -> TwoViewHydra:
    """Extend a hydra model, in place, to see second views.

    The class of the object is changed. A wrapper module would change the names of parameters in
    checkpoints.

    Args:
        model: a new model, or one to be fine-tuned.
        settings: ``head`` and ``learned_curvature`` are used.
        auxiliary_head: see :func:`ndem_ocp.fairchem2.heads.build_head`.
        force_tasks: names of the force tasks.

    Raises:
        SettingsError: if the auxiliary head cannot be built.
    """
    if settings.head == "separate":
        head = build_head(model, auxiliary_head)
        model.output_heads[AUXILIARY_OUTPUT] = AuxiliaryHead(head, settings.learned_curvature)
    model.__class__ = TwoViewHydra
    model.shared = settings.head == "shared"
    model.force_tasks = tuple(force_tasks)
    return model


def conserving(backbone: nn.Module) -> bool:
    """Whether forces are gradients of the energy."""
    regress = getattr(backbone, "regress_config", None)
    return regress is not None and not regress.direct_forces and (regress.forces or regress.stress)


@contextlib.contextmanager
def without_forces(backbone: nn.Module) -> Iterator[None]:
    """Switch off forces and stress as gradients of the energy in this context."""
    regress = backbone.regress_config
    before = regress.forces, regress.stress
    regress.forces = regress.stress = False
    try:
        yield
    finally:
        regress.forces, regress.stress = before


def _checkpointed(backbone: nn.Module) -> bool:
    return any(
        getattr(module, "activation_checkpoint_chunk_size", None) is not None
        for module in backbone.modules()
    )


def _spread(second: Tensor, views: Views, count: int) -> Tensor:
    """(N, 3) from the output for the M atoms of the second view; zero for all other atoms."""
    spread = second.new_zeros(count, 3)
    return spread.index_copy(0, views.atoms, second.view(-1, 3))


def heads_are_new(model: nn.Module) -> bool | None:
    """Whether a fine-tuning run has new heads, not the checkpoint's; None if not fine-tuning."""
    if not hasattr(model, "finetune_model_full_config"):
        return None
    return hasattr(model, "heads")  # set by initialize_finetuning_model when it replaces the heads
