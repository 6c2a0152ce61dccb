"""What each ``task.ndem.objective`` does in a training step, between the host and the method.

    objective     the model sees                         fairchem's loss is on     auxiliary loss
    ndem          X and X + eps in one forward           X                         Eq. 17
      instead     X + eps for some structures            all, labels of X + eps    none
    noisy_nodes   X and X + eps in one forward           X                         Eq. 12
    dens          X + eps, told F(X) where eps != 0      energy: all structures;   DeNS
                                                         forces: uncorrupted atoms

The losses themselves are in ``ndem_ocp/method``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from ndem_ocp.method import (
    Forces,
    NDeMLoss,
    NDeMSettings,
    Noise,
    Tally,
    change_diagnostics,
    dens_loss,
    forces_of_clean_atoms,
    forces_to_tell,
    ndem_loss,
    noisy_nodes_loss,
    view_energy,
    view_forces,
    view_weights,
    weighted_residual,
)
from ndem_ocp.models import NOISY_FORCES, two_view_config, with_second_view
from ndem_ocp.models.dens import FORCE_EMBEDDING, as_corrupted, dens_config
from ndem_ocp.training.config import ENERGY, FORCES


class Step(NamedTuple):
    """What an auxiliary loss needs besides the model's outputs."""

    batch: Batch  # with the labels of X
    noise: Noise
    label: Tensor | None  # (N, 3) normalised forces, None where the data has none
    counted: Tensor  # (N,) bool, atoms that the force loss sees
    force_rms: float  # rms_F of Eq. 10, energy unit / Angstrom; 1 without normalizer
    curvature: Tensor | None  # () learned c
    mean: Callable[[Tensor], Tensor]  # over the atoms of all ranks
    weight: float = 1.0  # lambda_NDeM of this step
    progress: float = 0.0  # fraction of training
    # labels of an output as the host's loss compares them, from raw ones: (name, batch) -> tensor
    normalised: Callable[[str, Batch], Tensor] | None = None
    squared: frozenset[str] = frozenset()  # outputs whose loss is a squared one


class Objective(Protocol):
    """One way to train with an auxiliary head."""

    # Submodules that the plain model does not have.
    auxiliary_modules: tuple[str, ...]
    # Sign of the auxiliary head's output along eps: f' = f(X) - eps*, or the noise itself.
    sign: int

    def model_config(
        self, model: dict[str, Any], auxiliary_head: dict[str, Any] | None
    ) -> dict[str, Any]:
        """The model section that the plain one becomes."""

    def view(self, batch: Batch, noise: Noise) -> Batch:
        """What the model is shown; ``batch`` is not changed."""

    def labelled(self, batch: Batch, noise: Noise) -> Batch:
        """The batch with the labels of what the model was shown; ``batch`` is not changed."""

    def main_outputs(self, out: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        """The outputs for fairchem's own losses."""

    def loss(self, out: dict[str, Tensor], auxiliary: Tensor | None, step: Step) -> NDeMLoss:
        """The auxiliary loss, from the main heads' ``out`` and the auxiliary head's (N, 3)."""

    def hidden(self, noise: Noise) -> Tensor | None:
        """(N,) bool atoms whose main force is no prediction of the label; None: there are none."""


class NDeM:
    """The paper's objective."""

    auxiliary_modules: tuple[str, ...] = (f"output_heads.{NOISY_FORCES}",)
    sign = -1

    def __init__(self, settings: NDeMSettings) -> None:
        self.settings = settings

    def model_config(
        self, model: dict[str, Any], auxiliary_head: dict[str, Any] | None
    ) -> dict[str, Any]:
        return two_view_config(model, self.settings, auxiliary_head)

    def view(self, batch: Batch, noise: Noise) -> Batch:
        return with_second_view(batch, noise.eps, noise.viewed)

    def labelled(self, batch: Batch, noise: Noise) -> Batch:
        return batch

    def main_outputs(self, out: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        return out

    def loss(self, out: dict[str, Tensor], auxiliary: Tensor | None, step: Step) -> NDeMLoss:
        assert auxiliary is not None
        return ndem_loss(
            Forces(out.get(FORCES), auxiliary, step.label),
            step.noise,
            step.counted,
            self.settings,
            force_rms=step.force_rms,
            curvature=step.curvature,
            mean=step.mean,
        )

    def hidden(self, noise: Noise) -> Tensor | None:
        return None


class NoisyNodes(NDeM):
    """Classical denoising on NDeM's two views; the main forces take no part in it."""

    sign = 1

    def loss(self, out: dict[str, Tensor], auxiliary: Tensor | None, step: Step) -> NDeMLoss:
        assert auxiliary is not None
        return noisy_nodes_loss(auxiliary, step.noise, step.counted, self.settings, mean=step.mean)


class DeNS(NDeM):
    """Denoising non-equilibrium structures: one view, corrupted in part, told its forces."""

    auxiliary_modules = (*NDeM.auxiliary_modules, f"backbone.{FORCE_EMBEDDING}")
    sign = 1

    def model_config(
        self, model: dict[str, Any], auxiliary_head: dict[str, Any] | None
    ) -> dict[str, Any]:
        return dens_config(model, self.settings, auxiliary_head)

    def view(self, batch: Batch, noise: Noise) -> Batch:
        told = forces_to_tell(batch[FORCES].to(batch.pos.dtype), noise)
        return as_corrupted(batch, noise.eps, told)

    def main_outputs(self, out: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        return {**out, FORCES: forces_of_clean_atoms(out[FORCES], step.label, step.noise)}

    def loss(self, out: dict[str, Tensor], auxiliary: Tensor | None, step: Step) -> NDeMLoss:
        assert auxiliary is not None
        return dens_loss(auxiliary, step.noise, step.counted, self.settings, mean=step.mean)

    def hidden(self, noise: Noise) -> Tensor | None:
        return noise.moved


class Instead(NDeM):
    """Second views in the place of some structures, with labels for the main heads."""

    auxiliary_modules = ()

    def model_config(
        self, model: dict[str, Any], auxiliary_head: dict[str, Any] | None
    ) -> dict[str, Any]:
        return model

    def view(self, batch: Batch, noise: Noise) -> Batch:
        displaced = copy.copy(batch)
        displaced.pos = batch.pos + noise.eps
        return displaced

    def labelled(self, batch: Batch, noise: Noise) -> Batch:
        labelled = self.view(batch, noise)
        labelled[FORCES] = view_forces(batch[FORCES], noise)
        if ENERGY in batch:
            labelled[ENERGY] = view_energy(batch[ENERGY], batch[FORCES], noise, batch.batch)
        return labelled

    def main_outputs(self, out: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        noise, batch = step.noise, step.batch
        count = batch.natoms.numel()
        atoms, structures = view_weights(
            noise, batch.batch, count, self.settings, step.weight, step.progress
        )
        shown = self.labelled(batch, noise)
        weighted = dict(out)
        assert step.normalised is not None
        for name, weight in ((FORCES, atoms), (ENERGY, structures)):
            if name in out:
                weighted[name] = weighted_residual(
                    out[name],
                    step.normalised(name, shown).view(out[name].shape),
                    weight,
                    name in step.squared,
                )
        return weighted

    def loss(self, out: dict[str, Tensor], auxiliary: Tensor | None, step: Step) -> NDeMLoss:
        """No loss of its own: the views are in fairchem's; only what they show is logged."""
        nothing = out[FORCES].new_zeros(())
        viewed, counted = step.noise.viewed, step.counted
        share = viewed.float().sum().item() / max(1, viewed.numel())
        log = {"ndem_share_of_atoms": Tally(share, 1.0)}
        if self.settings.target == "second_views":
            predicted = step.force_rms * (out[FORCES].detach() - step.label)
            keep = counted & viewed
            log |= change_diagnostics(predicted, step.noise, keep, self.settings.energy_unit)
        return NDeMLoss(nothing, log)

    def hidden(self, noise: Noise) -> Tensor | None:
        return noise.viewed


def objective_of(settings: NDeMSettings) -> NDeM:
    """The objective that ``task.ndem`` asks for."""
    return (Instead if settings.instead else OBJECTIVES[settings.objective])(settings)


OBJECTIVES: dict[str, type[NDeM]] = {"ndem": NDeM, "noisy_nodes": NoisyNodes, "dens": DeNS}


def step_of(
    batch: Batch,
    noise: Noise,
    target: dict[str, Any] | None,
    normalizer: nn.Module | None,
    **rest: Any,
) -> Step:
    """The :class:`Step` of a batch.

    Args:
        batch: on its device; ``forces`` and ``fixed`` may be absent.
        noise: of this step.
        target: ``outputs.forces`` of the configuration, None without it (no force labels).
        normalizer: of the forces, or None.
        **rest: the other fields of :class:`Step`.
    """
    label = None if target is None else batch.get(FORCES)
    if label is not None and normalizer is not None:
        label = normalizer.norm(label)
    fixed = batch.get("fixed")
    if fixed is None or not (target or {}).get("train_on_free_atoms", True):
        counted = torch.ones_like(noise.moved)
    else:
        counted = fixed == 0
    return Step(batch=batch, noise=noise, label=label, counted=counted, **rest)


def hide_atoms(batch: Batch, hidden: Tensor, free_only: bool) -> Batch:
    """A shallow copy of ``batch`` in which fairchem's metrics over free atoms skip ``hidden``."""
    fixed = hidden | (batch.fixed != 0) if free_only else hidden
    seen = copy.copy(batch)
    seen.fixed = fixed.to(batch.fixed.dtype)
    return seen
