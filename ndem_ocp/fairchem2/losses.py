"""Losses of tasks, logged separately and weighted per structure, and the auxiliary loss."""

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
    AuxiliaryLoss,
    Forces,
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
    """A wrapper of a task's loss, which keeps its value and can weight displaced structures.

    Args:
        task: the task, with its loss.

    Attributes:
        value: () the loss in the last step, including its coefficient.
        weight: (n,) weights of atoms or structures in the next step; None: all are 1.
        predicted: the normalised prediction in the last step.
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
        """``loss_<task>``, the contribution to the total loss, and the error in physical units."""
        if self.value is None:
            return {}
        value = float(self.value)
        return {name: value * factor for name, factor in self._names.items()}


def error_names(task: Task) -> dict[str, float]:
    """{name under which a task's loss is logged: factor by which to multiply it}.

    The error in physical units is the loss without its coefficient, times the task's normalization
    (rms_F for forces): ``forces_l2norm_eV_per_A``, ``energy_per_atom_mae_eV_per_atom``. A loss that
    is not the mean of such an error is only logged as its contribution to the total loss.
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
    """L_NDeM (Eq. 17) or the noisy-nodes loss (Eq. 12) for one force task, as a loss of a task.

    ``noise`` and ``coefficient`` must be set before each step.
    """

    def __init__(self, settings: NDeMSettings, task: Task, log_curvature: Tensor | None) -> None:
        super().__init__(loss_fn=None)
        self.settings = settings
        self.force_rms = float(task.normalizer.rmsd)
        self.noise: Noise | None = None
        self.result: AuxiliaryLoss | None = None
        # in a tuple, because it is a parameter of the model and not of this module
        self._log_curvature = (log_curvature,)

    def forward(self, input: Tensor, target: Tensor, mult_mask: Tensor, natoms: Tensor) -> Tensor:
        """() from (N, 6) [f(X), f'(X~)], normalised labels, and the mask of atoms to include."""
        clean, noisy = input[:, :3], input[:, 3:]
        assert self.noise is not None
        if self.settings.objective == "noisy_nodes":
            self.result = noisy_nodes_loss(
                noisy, self.noise, mult_mask, self.settings, mean=self._mean
            )
            # The main forces are not involved, but DDP needs a gradient of every output.
            return self.coefficient * (self.result.loss + 0.0 * clean.sum())
        log_factor = self._log_curvature[0]
        label = torch.nan_to_num(target, posinf=0.0, neginf=0.0).view(clean.shape)
        self.result = ndem_loss(
            Forces(clean, noisy, label),
            self.noise,
            mult_mask,
            self.settings,
            force_rms=self.force_rms,
            curvature_factor=None if log_factor is None else log_factor.exp(),
            mean=self._mean,
        )
        return self.coefficient * self.result.loss

    def _mean(self, error: Tensor) -> Tensor:
        """Mean over the atoms of all ranks, as in fairchem's own losses."""
        return self._ddp_mean(error.numel(), error.sum())


def pair_task(task: Task, loss: PairLoss) -> Task:
    """A task whose loss is the auxiliary loss of a force task; only for training."""
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
    """A copy of a task with changed fields. (``dataclasses.replace`` fails on hydra's objects.)"""
    kept = {field.name: getattr(task, field.name) for field in fields(Task)}
    return Task(**{**kept, **fields_})


def over_ranks(log: dict[str, Tally], device: torch.device) -> dict[str, float]:
    """Means over atoms and ranks, without quantities that have no atoms."""
    if not log:
        return {}
    flat = [part for name in sorted(log) for part in log[name]]
    if distutils.get_world_size() > 1:
        sums = torch.tensor(flat, dtype=torch.float64).to(device, torch.float32)
        flat = distutils.all_reduce(sums).tolist()
    pairs = zip(sorted(log), flat[::2], flat[1::2])
    return {name: total / weight for name, total, weight in pairs if weight}


def plain_names(prefixes: Sequence[str]) -> list[str]:
    """Prefixes of logged names, one per force task; empty if there is only one such task."""
    return [""] if len(prefixes) == 1 else [f"{prefix}/" for prefix in prefixes]
