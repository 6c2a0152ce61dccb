"""What the model sees in a training step, and which losses the step has.

    place      the model sees                       fairchem's losses are on     auxiliary loss
    beside     X, and X + eps of some structures    X                            Eq. 17 or Eq. 12
    instead    X + eps for some structures          all, with labels of X + eps  none

A run has one object of these classes; ``prepare`` is called before a step, ``log`` after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.units.mlip_unit.mlip_unit import Task
from torch import Tensor

from ndem_ocp.fairchem2.losses import (
    PairLoss,
    TaskLoss,
    changed,
    over_ranks,
    pair_task,
    plain_names,
)
from ndem_ocp.fairchem2.model import TwoViewHydra, pair_name
from ndem_ocp.fairchem2.section import ENERGY, forces_tasks
from ndem_ocp.fairchem2.views import EPS, VIEWED
from ndem_ocp.method import (
    NDeMSettings,
    Noise,
    Tally,
    change_diagnostics,
    view_energy,
    view_forces,
    view_weights,
)


class Now(NamedTuple):
    """The progress of training."""

    weight: float  # lambda_NDeM in this step
    progress: float  # fraction of training


class Objective(Protocol):
    """One way to use second views."""

    tasks: list[Task]  # the tasks in a step with second views

    def prepare(self, data: AtomicData, noise: Noise, now: Now) -> None:
        """Mark or displace a batch, and prepare the losses; all on the device of the batch."""

    def log(self, total: float | None, device: torch.device) -> dict[str, float]:
        """Diagnostics of the last step, given its total loss. Call it on all ranks."""


class Beside:
    """``place: beside``: X and X + eps in one step, with an auxiliary head for X + eps."""

    def __init__(self, settings: NDeMSettings, tasks: Sequence[Task], model: TwoViewHydra) -> None:
        self._forces = forces_tasks(tasks)
        self._losses = [PairLoss(settings, task, model.log_curvature) for task in self._forces]
        pairs = [pair_task(task, loss) for task, loss in zip(self._forces, self._losses)]
        self.tasks = [*tasks, *pairs]

    def prepare(self, data: AtomicData, noise: Noise, now: Now) -> None:
        data[EPS], data[VIEWED] = noise.eps, noise.viewed
        for task, loss in zip(self._forces, self._losses):
            data[pair_name(task.name)] = data[task.name]
            loss.noise, loss.coefficient = noise, now.weight

    def log(self, total: float | None, device: torch.device) -> dict[str, float]:
        shown: dict[str, float] = {}
        for prefix, loss in zip(plain_names([t.name for t in self._forces]), self._losses):
            assert loss.result is not None
            value = loss.result.loss.item()
            found = {"ndem_loss": value, **over_ranks(loss.result.log, device)}
            if total:
                found["ndem_share_of_loss"] = loss.coefficient * value / total
            shown |= {prefix + name: number for name, number in found.items()}
        return shown


class Instead:
    """``place: instead``: X + eps replaces some structures, with labels for the main heads."""

    def __init__(self, settings: NDeMSettings, tasks: Sequence[Task]) -> None:
        self.settings = settings
        self.tasks = list(tasks)
        self._forces = forces_tasks(tasks)
        self._noise: Noise | None = None
        self._labels: dict[str, Tensor] = {}  # forces of X, by task

    def prepare(self, data: AtomicData, noise: Noise, now: Now) -> None:
        count = data.natoms.numel()
        atoms, structures = view_weights(
            noise, data.batch, count, self.settings, now.weight, now.progress
        )
        self._noise = noise
        self._labels = {task.name: data[task.name] for task in self._forces}
        forces = known_forces(data, self._forces)
        for task in self.tasks:
            loss = task.loss_fn
            assert isinstance(loss, TaskLoss)
            if task.property == ENERGY:
                loss.weight = structures
                data[task.name] = view_energy(data[task.name], forces, noise, data.batch)
            elif task.name in self._labels:
                loss.weight = atoms
                data[task.name] = view_forces(data[task.name], noise)
            else:  # a label that is unknown for X + eps, such as the stress
                of_atoms = task.level == "atom"
                shown = noise.viewed if of_atoms else noise.viewed[first_atoms(data)]
                loss.weight = (~shown).to(noise.sigma.dtype)
        data.pos = data.pos + noise.eps

    def log(self, total: float | None, device: torch.device) -> dict[str, float]:
        assert self._noise is not None
        viewed = self._noise.viewed
        share = Tally(viewed.float().sum().item(), max(1, viewed.numel()))
        shown = over_ranks({"ndem_share_of_atoms": share}, device)
        if self.settings.target != "second_views":
            return shown
        for prefix, task in zip(plain_names([t.name for t in self._forces]), self._forces):
            label = self._labels[task.name]
            keep = viewed & torch.isfinite(label).all(-1)
            change = task.normalizer.denorm(task.loss_fn.predicted.view(-1, 3)) - label
            change = torch.where(keep[:, None], change, torch.zeros_like(change))
            found = change_diagnostics(change, self._noise, keep, self.settings.energy_unit)
            shown |= {prefix + n: value for n, value in over_ranks(found, device).items()}
        return shown


def logged(tasks: Sequence[Task]) -> list[Task]:
    """Copies of tasks whose losses are kept for the log; the originals are for evaluation."""
    return [changed(task, loss_fn=TaskLoss(task)) for task in tasks]


def first_atoms(data: AtomicData) -> Tensor:
    """(B,) index of the first atom of each structure."""
    return data.natoms.cumsum(0) - data.natoms


def known_forces(data: AtomicData, tasks: Sequence[Task]) -> Tensor:
    """(N, 3) force labels from whichever task has them; 0 where no task has one."""
    forces = torch.zeros_like(data.pos)
    for task in tasks:
        label = data[task.name]
        forces = torch.where(torch.isfinite(label), label, forces)
    return forces


def with_forces(data: AtomicData, tasks: Sequence[Task]) -> Tensor:
    """(B,) bool: structures whose atoms all have force labels, from any task."""
    labelled = torch.zeros_like(data.natoms, dtype=torch.bool)
    for task in tasks:
        missing = (~torch.isfinite(data[task.name]).all(-1)).long()
        labelled |= torch.zeros_like(data.natoms).index_add(0, data.batch, missing) == 0
    return labelled


def restricted(noise: Noise, structures: Tensor, index: Tensor) -> Noise:
    """The noise restricted to some structures; all others are not displaced.

    Args:
        structures: (B,) bool. index: (N,) structure of each atom.
    """
    if bool(structures.all()):
        return noise
    atoms, labels = structures[index], noise.labels
    if labels is not None:
        labels = labels._replace(
            force_change=labels.force_change * atoms[:, None].to(labels.force_change),
            energy_remainder=labels.energy_remainder * structures.to(labels.energy_remainder),
        )
    return noise._replace(
        eps=noise.eps * atoms[:, None].to(noise.eps.dtype),
        moved=noise.moved & atoms,
        viewed=noise.viewed & atoms,
        labels=labels,
    )
