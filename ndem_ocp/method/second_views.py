"""Second views with labels: the force at X~ = X + eps without another DFT calculation.

A potential T with poor forces can still predict well how forces change over a few hundredths of an
Angstrom. With its scale s and its relative error delta, both measured on pairs of near frames of
the data,

    F(X + eps) ~ F(X) + s [T(X + eps) - T(X)]                              error: delta |change|
    E(X + eps) ~ E(X) - F(X) . eps + s [T_E(X + eps) - T_E(X) + T(X) . eps]

where F(X) and E(X) are the labels of the data. (T may be corrected by an energy fitted to the data,
fairchem_kit/curvature/correction.py.) F(X) gives the energy to first order, T the rest.
``target: first_order`` leaves out that rest and has no force label (PIWSL, arXiv 2408.05215).

With ``place: instead``, a view replaces its structure, and its labels enter the losses of the main
heads. With ``place: beside``, Eq. 17 keeps its form, and -s [T(X + eps) - T(X)] / rms_F replaces
eps*.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ndem_ocp.method.diagnostics import Tally, change_diagnostics
from ndem_ocp.method.noise import Noise, ViewLabels
from ndem_ocp.method.objective import ENERGY, FORCES, AuxiliaryLoss, Objective, Step
from ndem_ocp.method.schedules import at
from ndem_ocp.method.settings import NDeMSettings
from ndem_ocp.method.views import displaced


class Instead(Objective):
    """Second views that replace some structures and have labels for the main heads.

    This is ``objective: ndem`` with ``place: instead``.
    """

    model = "plain"

    @property
    def needs_main_forces(self) -> bool:
        return True

    def probability(self, progress: float) -> float:
        return at(self.settings.share, progress)

    def draw(self, batch: Any, generator: torch.Generator, progress: float) -> Noise:
        """The noise of ``first_order``; ``second_views`` are read from a file instead."""
        return with_first_order_labels(
            super().draw(batch, generator, progress), batch.natoms.numel()
        )

    def view(self, batch: Any, noise: Noise) -> Any:
        return displaced(batch, noise.eps)

    def labelled(self, batch: Any, noise: Noise) -> Any:
        labelled = displaced(batch, noise.eps)
        labelled[FORCES] = view_forces(batch[FORCES], noise)
        if ENERGY in batch:
            labelled[ENERGY] = view_energy(batch[ENERGY], batch[FORCES], noise, batch.batch)
        return labelled

    def main_outputs(self, out: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        shown = step.batch
        atoms, structures = view_weights(
            step.noise, shown.batch, shown.natoms.numel(), self.settings, step.weight, step.progress
        )
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

    def loss(self, out: dict[str, Tensor], auxiliary: Tensor | None, step: Step) -> AuxiliaryLoss:
        """Zero, because the views are in the host's losses; only the log is of interest."""
        nothing = out[FORCES].new_zeros(())
        viewed, counted = step.noise.viewed, step.counted
        share = viewed.float().sum().item() / max(1, viewed.numel())
        log = {"ndem_share_of_atoms": Tally(share, 1.0)}
        if self.settings.target == "second_views":
            assert step.label is not None
            predicted = step.force_rms * (out[FORCES].detach() - step.label)
            keep = counted & viewed
            log |= change_diagnostics(predicted, step.noise, keep, self.settings.energy_unit)
        return AuxiliaryLoss(nothing, log)

    def hidden(self, noise: Noise) -> Tensor | None:
        return noise.viewed


def with_first_order_labels(noise: Noise, num_graphs: int) -> Noise:
    """The same noise with the labels of ``first_order``: F(X), and the energy to first order.

    The force label has weight 0 in the loss (:func:`view_weights`).
    """
    zero = torch.zeros_like(noise.sigma)
    return noise._replace(
        labels=ViewLabels(torch.zeros_like(noise.eps), noise.sigma.new_zeros(num_graphs), zero)
    )


def view_forces(forces: Tensor, noise: Noise) -> Tensor:
    """(N, 3) force labels of the structures as the model sees them, not normalised."""
    assert noise.labels is not None
    return forces + noise.labels.force_change.to(forces.dtype)


def view_energy(energy: Tensor, forces: Tensor, noise: Noise, graph_index: Tensor) -> Tensor:
    """Energy labels of the structures as the model sees them, in the shape of ``energy``.

    Args:
        energy: B values, E(X), not normalised. forces: (N, 3) F(X). noise: with labels.
        graph_index: (N,) structure of each atom.
    """
    assert noise.labels is not None
    work = (forces.double() * noise.eps.double()).sum(-1)
    first_order = work.new_zeros(energy.numel()).index_add(0, graph_index, work)
    change = noise.labels.energy_remainder.double() - first_order
    return energy + change.view(energy.shape).to(energy.dtype)


def view_weights(
    noise: Noise,
    graph_index: Tensor,
    num_graphs: int,
    settings: NDeMSettings,
    weight: float,
    progress: float,
) -> tuple[Tensor, Tensor]:
    """Weights of atoms (N,) in the force loss and of structures (B,) in the energy loss.

    1 for structures that are not displaced; for displaced ones ``weight`` times

        w_i = trust^2 / (trust^2 + (delta |dF_i|)^2)

    if ``trust`` is set: the weight, relative to an exact label, of a label with error
    delta |dF_i| when the error of the model itself is ``trust``. The weight of an energy is the
    mean over the structure's atoms.

    Args:
        noise: with labels. graph_index: (N,) structure of each atom. num_graphs: B.
        settings: ``target``, ``trust``, ``energies``.
        weight: lambda_NDeM of this step. progress: fraction of training.
    """
    assert noise.labels is not None
    atoms = torch.ones_like(noise.sigma)
    if settings.trust is not None:
        square = at(settings.trust, progress) ** 2
        atoms = square / (square + noise.labels.force_error.square())
    counts = torch.bincount(graph_index, minlength=num_graphs).clamp_min(1)
    mean = atoms.new_zeros(num_graphs).index_add(0, graph_index, atoms) / counts
    shown = atoms.new_zeros(num_graphs).index_fill(0, graph_index[noise.viewed], 1.0) > 0
    of_forces = 0.0 if settings.target == "first_order" else weight
    of_energy = weight if settings.energies else 0.0
    return (
        torch.where(noise.viewed, of_forces * atoms, torch.ones_like(atoms)),
        torch.where(shown, of_energy * mean, torch.ones_like(mean)),
    )


def weighted_residual(predicted: Tensor, label: Tensor, weight: Tensor, squared: bool) -> Tensor:
    """A prediction whose loss against ``label`` is ``weight`` times the loss of ``predicted``.

        label + w (predicted - label)          for losses that are a norm of the error
        label + sqrt(w) (predicted - label)    for squared errors

    In this way any loss of the host can be weighted without changing it.

    Args:
        predicted, label: (n, k) normalised. weight: (n,). squared: whether the loss is a square.
    """
    factor = weight.sqrt() if squared else weight
    wide = torch.promote_types(predicted.dtype, label.dtype)
    label = label.to(wide)
    return label + factor.to(wide)[:, None] * (predicted.to(wide) - label)
