"""The loss of a task, logged by itself and weighted by structure, and the NDeM loss of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.modules.loss import (
    DDPMTLoss,
    L2NormLoss,
    MAELoss,
    MSELoss,
    PerAtomMAELoss,
)
from fairchem.core.units.mlip_unit.mlip_unit import OutputSpec, Task
from torch import Tensor, nn

from ndem_ocp.fairchem2.model import PAIR, pair_name
from ndem_ocp.method import (
    Forces,
    NDeMLoss,
    NDeMSettings,
    Noise,
    Tally,
    ndem_loss,
    noisy_nodes_loss,
    weighted_residual,
)

UNITS = {"energy": "eV", "forces": "eV_per_A", "stress": "eV_per_A3"}
_ERRORS: dict[type[nn.Module], str] = {
    L2NormLoss: "l2norm",
    MAELoss: "mae",
    MSELoss: "mse",
    PerAtomMAELoss: "per_atom_mae",
}


class TaskLoss(nn.Module):
    """A task's own loss; remembers its value, and can count displaced structures less.

    Args:
        task: with its loss.

    Attributes:
        value: () the loss of the last step, its coefficient included.
        weight: (n,) of the rows (atoms or structures) in the next step; None: all count alike.
        predicted: the normalised prediction of the last step.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.inner = task.loss_fn
        self.value: Tensor | None = None
        self.weight: Tensor | None = None
        self.predicted: Tensor | None = None
        self._names = error_names(task)

    def forward(self, input: Tensor, target: Tensor, mult_mask: Tensor, natoms: Tensor) -> Tensor:
        self.predicted = input.detach()
        if self.weight is not None:
            target = torch.nan_to_num(target, posinf=0.0, neginf=0.0).view(input.shape)
            squared = isinstance(getattr(self.inner, "loss_fn", None), MSELoss)
            input = weighted_residual(input, target, self.weight, squared)
        loss = self.inner(input, target, mult_mask=mult_mask, natoms=natoms)
        self.value = loss.detach()
        return loss

    def log(self) -> dict[str, float]:
        """``loss_<task>``, its part of the total loss, and the same as an error with its unit."""
        if self.value is None:
            return {}
        value = float(self.value)
        return {name: value * factor for name, factor in self._names.items()}


def error_names(task: Task) -> dict[str, float]:
    """Names under which a task's loss is logged, and the factors that belong to them.

    An error in physical units is the loss without its coefficient, times rms_F or what the task is
    normalised with: ``forces_l2norm_eV_per_A``, ``energy_per_atom_mae_eV_per_atom``. Losses that
    are no mean of such an error have their part of the total loss alone.
    """
    names = {f"loss_{task.name}": 1.0}
    loss = task.loss_fn
    kind = _ERRORS.get(type(getattr(loss, "loss_fn", None)))
    unit = UNITS.get(task.property)
    if kind is None or unit is None or not isinstance(loss, DDPMTLoss):
        return names
    if loss.reduction == "sum" or not loss.coefficient:
        return names
    scale = float(task.normalizer.rmsd)
    if kind == "mse":
        unit, scale = f"({unit})2", scale**2
    if kind == "per_atom_mae":
        unit += "_per_atom"
    names[f"{task.name}_{kind}_{unit}"] = scale / loss.coefficient
    return names


class PairLoss(DDPMTLoss):
    """L_NDeM (Eq. 17) or L of noisy nodes (Eq. 12) of one task of forces, as the task's loss.

    ``noise`` and ``coefficient`` are those of the step.
    """

    def __init__(self, settings: NDeMSettings, task: Task, log_curvature: Tensor | None) -> None:
        super().__init__(loss_fn=None)
        self.settings = settings
        self.force_rms = float(task.normalizer.rmsd)
        self.noise: Noise | None = None
        self.result: NDeMLoss | None = None
        self._log_curvature = (log_curvature,)  # in a tuple: it is the model's, not this module's

    def forward(self, input: Tensor, target: Tensor, mult_mask: Tensor, natoms: Tensor) -> Tensor:
        """From (N, 6) f(X) | f'(X~), the normalised label and the mask of atoms that count."""
        clean, noisy = input[:, :3], input[:, 3:]
        assert self.noise is not None
        if self.settings.objective == "noisy_nodes":
            self.result = noisy_nodes_loss(
                noisy, self.noise, mult_mask, self.settings, mean=self._mean
            )
            # The main forces take no part; DDP hears of every output all the same.
            return self.coefficient * (self.result.loss + 0.0 * clean.sum())
        curvature = self._log_curvature[0]
        label = torch.nan_to_num(target, posinf=0.0, neginf=0.0).view(clean.shape)
        self.result = ndem_loss(
            Forces(clean, noisy, label),
            self.noise,
            mult_mask,
            self.settings,
            force_rms=self.force_rms,
            curvature=None if curvature is None else curvature.exp(),
            mean=self._mean,
        )
        return self.coefficient * self.result.loss

    def _mean(self, error: Tensor) -> Tensor:
        """Over the atoms of all ranks, as fairchem's own losses."""
        return self._ddp_mean(error.numel(), error.sum())


def pair_task(task: Task, loss: PairLoss) -> Task:
    """The task whose loss is L_NDeM of a task of forces. Not for evaluation or checkpoints."""
    return changed(
        task,
        name=pair_name(task.name),
        property=PAIR,
        loss_fn=loss,
        out_spec=OutputSpec([3], task.out_spec.dtype),
        datasets=[],
        metrics=[],
    )


def changed(task: Task, **fields_: Any) -> Task:
    """A copy of a task with other fields. (hydra hands in what only looks like a dataclass.)"""
    kept = {field.name: getattr(task, field.name) for field in fields(Task)}
    return Task(**{**kept, **fields_})


def over_ranks(log: dict[str, Tally], device: torch.device) -> dict[str, float]:
    """Means over atoms and ranks; names for which nothing was counted are left out."""
    if not log:
        return {}
    flat = [part for name in sorted(log) for part in log[name]]
    if distutils.get_world_size() > 1:
        sums = torch.tensor(flat, dtype=torch.float64).to(device, torch.float32)
        flat = distutils.all_reduce(sums).tolist()
    pairs = zip(sorted(log), flat[::2], flat[1::2])
    return {name: total / weight for name, total, weight in pairs if weight}


def plain_names(prefixes: Sequence[str]) -> list[str]:
    """What is put before a task's NDeM names: nothing where there is one task of forces."""
    return [""] if len(prefixes) == 1 else [f"{prefix}/" for prefix in prefixes]
