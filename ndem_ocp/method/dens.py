"""DeNS, denoising non-equilibrium structures (Liao et al., TMLR 2024).

    L = (1/N) sum_i m_i || d_i(X~, F(X)) - eps*_i ||^2

d is the auxiliary head, eps* = scale * eps as in Eq. 17, m_i = 1 on corrupted atoms. There is one
view, corrupted in part, and the model is told F(X) on the corrupted atoms. The force loss of the
main head belongs to the other atoms, 1 - m_i, with the same 1/N.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ndem_ocp.method.noise import Noise
from ndem_ocp.method.noisy_nodes import error_diagnostics, noise_error
from ndem_ocp.method.objective import FORCES, Mean, NDeMLoss, Objective, Step
from ndem_ocp.method.registry import register
from ndem_ocp.method.settings import NDeMSettings
from ndem_ocp.method.views import as_corrupted


@register
class DeNS(Objective):
    """One view, corrupted in part, which tells the model the forces of the corrupted atoms."""

    name = "dens"
    own_settings = ("dens_probability",)
    model = "told_forces"

    @property
    def needs_main_forces(self) -> bool:
        return True

    def probability(self, progress: float) -> float:
        return self.settings.dens_probability

    def view(self, batch: Any, noise: Noise) -> Any:
        told = forces_to_tell(batch[FORCES].to(batch.pos.dtype), noise)
        return as_corrupted(batch, noise.eps, told)

    def main_outputs(self, out: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        assert step.label is not None
        return {**out, FORCES: forces_of_clean_atoms(out[FORCES], step.label, step.noise)}

    def loss(self, out: dict[str, Tensor], auxiliary: Tensor | None, step: Step) -> NDeMLoss:
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
) -> NDeMLoss:
    """The denoising part of DeNS: corrupted atoms only, over the number of all counted ones.

    Args:
        predicted: (N, 3) d(X~, F(X)) for every atom, dimensionless. The mask multiplies, so that
            a batch in which nothing is corrupted still gives every parameter a gradient.
        noise: ``moved`` is m, ``viewed`` the corrupted structures.
        counted: (N,) bool, atoms that the force loss sees. Corrupted ones join them (they differ
            only with ``atoms: all``).
        settings: norm and scale of eps*.
        mean: reduces the (n,) error per atom over all ranks.

    Raises:
        ValueError: if shapes differ.
    """
    keep = counted | noise.moved
    error = noise_error(predicted, noise, settings)
    loss = mean((error * noise.moved)[keep])
    return NDeMLoss(loss, error_diagnostics(predicted, noise, keep & noise.viewed, settings))


def forces_of_clean_atoms(predicted: Tensor, label: Tensor, noise: Noise) -> Tensor:
    """Main head's forces for DeNS's force loss, (N, 3): the label stands on corrupted atoms.

    Their error and gradient are then zero under any force loss, and its 1/N stays. The result has
    the wider of the two dtypes: a rounded label would have an error.
    """
    return torch.where(noise.moved[:, None], label, predicted)


def forces_to_tell(label: Tensor, noise: Noise) -> Tensor:
    """F(X) as DeNS feeds it to the model, (N, 3): the label on corrupted atoms, 0 elsewhere."""
    return label * noise.moved[:, None].to(label.dtype)
