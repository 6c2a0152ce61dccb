"""DeNS, denoising non-equilibrium structures (Liao et al., TMLR 2024).

    L = (1/N) sum_i m_i || d_i(X~, F(X)) - eps*_i ||^2

d is the auxiliary head, eps* = scale * eps as in Eq. 17, m_i = 1 on corrupted atoms and 0 on the
others. There is only one view, in which some atoms are corrupted; their forces F(X) are encoded as
an input of the model. The force loss of the main head covers the other atoms (weight 1 - m_i), with
the same 1/N.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ndem_ocp.method.noise import Noise
from ndem_ocp.method.noisy_nodes import error_diagnostics, noise_error
from ndem_ocp.method.objective import FORCES, AuxiliaryLoss, Mean, Objective, Step
from ndem_ocp.method.registry import register
from ndem_ocp.method.settings import NDeMSettings
from ndem_ocp.method.views import as_corrupted


@register
class DeNS(Objective):
    """One view with some corrupted atoms, whose forces are encoded as an input of the model."""

    name = "dens"
    own_settings = ("dens_probability",)
    model = "encoded_forces"

    @property
    def needs_main_forces(self) -> bool:
        return True

    def probability(self, progress: float) -> float:
        return self.settings.dens_probability

    def view(self, batch: Any, noise: Noise) -> Any:
        forces = forces_to_encode(batch[FORCES].to(batch.pos.dtype), noise)
        return as_corrupted(batch, noise.eps, forces)

    def main_outputs(self, out: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        assert step.label is not None
        return {**out, FORCES: forces_of_clean_atoms(out[FORCES], step.label, step.noise)}

    def loss(self, out: dict[str, Tensor], auxiliary: Tensor | None, step: Step) -> AuxiliaryLoss:
        assert auxiliary is not None
        return dens_loss(auxiliary, step.noise, step.counted, self.settings, mean=step.mean)

    def hidden(self, noise: Noise) -> Tensor | None:
        return noise.moved


def dens_loss(
    predicted: Tensor,
    noise: Noise,
    counted: Tensor,
    settings: NDeMSettings,
    *,
    mean: Mean = torch.mean,
) -> AuxiliaryLoss:
    """The denoising loss of DeNS: summed over corrupted atoms, divided by the number of all.

    Args:
        predicted: (N, 3) d(X~, F(X)) for every atom, dimensionless. Errors are multiplied by the
            mask m, so that every parameter has a gradient even if nothing in the batch is
            corrupted.
        noise: ``moved`` is m, ``viewed`` marks the corrupted structures.
        counted: (N,) bool, atoms that the force loss covers. Corrupted atoms are counted as well
            (with ``atoms: all`` some of them are fixed).
        settings: norm and scale of eps*.
        mean: the mean of (n,) errors per atom over the atoms of all ranks.

    Raises:
        ValueError: if shapes differ.
    """
    keep = counted | noise.moved
    error = noise_error(predicted, noise, settings)
    loss = mean((error * noise.moved)[keep])
    return AuxiliaryLoss(loss, error_diagnostics(predicted, noise, keep & noise.viewed, settings))


def forces_of_clean_atoms(predicted: Tensor, label: Tensor, noise: Noise) -> Tensor:
    """Forces for the host's force loss, (N, 3): predictions, but labels on corrupted atoms.

    So corrupted atoms have no error and no gradient under any force loss, and its 1/N is unchanged.
    The result has the wider of the two dtypes, because a rounded label would have an error.
    """
    return torch.where(noise.moved[:, None], label, predicted)


def forces_to_encode(label: Tensor, noise: Noise) -> Tensor:
    """F(X) as DeNS encodes it, (N, 3): the label on corrupted atoms, 0 on all others."""
    return label * noise.moved[:, None].to(label.dtype)
