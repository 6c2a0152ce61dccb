"""fairchem's HydraModel that can see X and X~ = X + eps in one forward."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import HydraModel
from torch import Tensor, nn

from ndem_ocp.fairchem2.heads import NOISY_FORCES, AuxiliaryHead, build_head
from ndem_ocp.fairchem2.routing import has_experts, joint_routing, same_routing
from ndem_ocp.fairchem2.section import FORCES
from ndem_ocp.fairchem2.views import EPS, Views, first_part, join_views, second_view
from ndem_ocp.method import NDeMSettings

PAIR = "pair"  # f(X) | f'(X~), (N, 6)


def pair_name(task: str) -> str:
    """Name of the output that pairs a task's forces with those of the second view.

    fairchem makes a mask of atoms from labels (N, 3) for names with "forces" in them only.
    """
    return f"ndem_{task}"


class TwoViewHydra(HydraModel):
    """A hydra model with an auxiliary head for second views; made by :func:`add_second_view`.

    A batch with ``EPS`` and ``VIEWED`` gives every output of the main heads on X and, for each
    task of forces, ``ndem_<task>: {pair: (N, 6)}``, f(X) and f'(X~) side by side, 0 for atoms
    without a second view. Any other batch gives what the plain model gives, at its cost.

    * Direct forces: one pass of the backbone over both views.
    * Forces that are gradients: one pass over X as ever, and one over X~ without gradients of the
      energy, so that only X pays for second derivatives.
    """

    force_tasks: tuple[str, ...]
    shared: bool

    @property
    def auxiliary(self) -> list[nn.Parameter]:
        """Parameters that the plain model does not have."""
        return [] if self.shared else list(self.output_heads[NOISY_FORCES].parameters())

    @property
    def log_curvature(self) -> nn.Parameter | None:
        """() logarithm of the learned c of Eq. 16; None where c is implicit."""
        return None if self.shared else self.output_heads[NOISY_FORCES].log_curvature

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
        out.pop(NOISY_FORCES, None)
        if self.training and self.auxiliary:
            # DDP wants a gradient for every parameter in every step: this one is 0.
            nothing = 0.0 * sum(parameter.sum() for parameter in self.auxiliary)
            name = self.force_tasks[0]
            out[name] = {**out[name], FORCES: out[name][FORCES] + nothing}
        return out

    def _two_passes(self) -> bool:
        if self.shared or not conserving(self.backbone):
            return False
        # Checkpointed layers run again in the backward, with the routing of the latest pass.
        return not (has_experts(self.backbone) and _checkpointed(self.backbone))

    def _each_alone(self, data: AtomicData, views: Views) -> tuple[dict, dict[str, Tensor]]:
        count = len(data.pos)
        out = super().forward(data)
        out.pop(NOISY_FORCES, None)
        head = self.output_heads[NOISY_FORCES]
        with without_forces(self.backbone), same_routing(self.backbone, views.structures):
            emb = self.backbone(views.second)
            with torch.autocast(device_type=self.device, enabled=head.use_amp):
                second = head(views.second, emb)[NOISY_FORCES]
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
            second = whole.pop(NOISY_FORCES)
            second = second[NOISY_FORCES] if isinstance(second, dict) else second
            found = dict.fromkeys(self.force_tasks, second)
        # What the backbone leaves in a batch, and the references of energies read there.
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
    """Make a hydra model one that sees second views; the object itself is changed.

    Its class is exchanged instead of a module put around it, so that the names of the plain
    model's parameters stay what they are in all checkpoints.

    Args:
        model: from scratch or to be fine-tuned. settings: ``head``, ``learned_curvature``.
        auxiliary_head: see :func:`ndem_ocp.fairchem2.heads.build_head`.
        force_tasks: names of the tasks of forces.

    Raises:
        SettingsError: an auxiliary head that cannot be made.
    """
    if settings.head == "separate":
        head = build_head(model, auxiliary_head)
        model.output_heads[NOISY_FORCES] = AuxiliaryHead(head, settings.learned_curvature)
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
    """No gradients of the energy, hence no graph for them, in this block."""
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
    """f'(X~) of the M atoms of the second view among the N atoms, zero for the others."""
    spread = second.new_zeros(count, 3)
    return spread.index_copy(0, views.atoms, second.view(-1, 3))


def heads_are_new(model: nn.Module) -> bool | None:
    """Whether a fine-tuning replaced the checkpoint's heads; None where there is no fine-tuning."""
    if not hasattr(model, "finetune_model_full_config"):
        return None
    return hasattr(model, "heads")  # which initialize_finetuning_model sets when it replaces them
