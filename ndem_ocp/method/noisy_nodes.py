"""Noisy nodes: classical denoising, in which the auxiliary head predicts the noise itself.

    L = (1/N) sum_i || d_i(X~) - eps*_i ||^2                                            (Eq. 12)

d is the auxiliary head on X~ = X + eps, eps* = scale * eps as in Eq. 17. The head learns +eps*,
whereas with NDeM and F(X) = 0 it would learn -eps*.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ndem_ocp.method.diagnostics import Tally, noise_diagnostics
from ndem_ocp.method.noise import Noise
from ndem_ocp.method.objective import (
    AuxiliaryLoss,
    Mean,
    Objective,
    Step,
    noise_target,
    per_atom_error,
    target_scale,
)
from ndem_ocp.method.registry import register
from ndem_ocp.method.settings import NDeMSettings


@register
class NoisyNodes(Objective):
    """Classical denoising on NDeM's two views; the main forces are not involved."""

    name = "noisy_nodes"
    own_settings = ("fraction",)

    def loss(self, out: dict[str, Tensor], auxiliary: Tensor | None, step: Step) -> AuxiliaryLoss:
        assert auxiliary is not None
        return noisy_nodes_loss(auxiliary, step.noise, step.counted, self.settings, mean=step.mean)


def noisy_nodes_loss(
    predicted: Tensor,
    noise: Noise,
    counted: Tensor,
    settings: NDeMSettings,
    *,
    mean: Mean = torch.mean,
) -> AuxiliaryLoss:
    """Classical denoising (Eq. 12) over the atoms in the force loss.

    Args:
        predicted: (N, 3) d(X~), dimensionless; zeros where there is no second view.
        noise: the noise that made X~ from X.
        counted: (N,) bool, as in :func:`ndem_ocp.method.ndem_loss`: unperturbed atoms count,
            structures without a second view do not.
        settings: norm and scale of eps*.
        mean: the mean of (n,) errors per atom over the atoms of all ranks.

    Raises:
        ValueError: if shapes differ.
    """
    keep = counted & noise.viewed
    error = noise_error(predicted, noise, settings)
    return AuxiliaryLoss(mean(error[keep]), error_diagnostics(predicted, noise, keep, settings))


def noise_error(predicted: Tensor, noise: Noise, settings: NDeMSettings) -> Tensor:
    """(N,) || d - eps* || in the norm of the settings, in at least float32."""
    if predicted.shape != noise.eps.shape:
        raise ValueError(
            f"The predicted noise has shape {tuple(predicted.shape)}, eps {tuple(noise.eps.shape)}"
        )
    wide = torch.promote_types(predicted.dtype, torch.float32)
    target = noise_target(noise, settings, force_rms=1.0).to(wide)
    return per_atom_error(predicted.to(wide) - target, settings.norm)


def error_diagnostics(
    predicted: Tensor, noise: Noise, keep: Tensor, settings: NDeMSettings
) -> dict[str, Tally]:
    wide = torch.promote_types(predicted.dtype, torch.float32)
    scale = target_scale(noise, settings, force_rms=1.0)
    return noise_diagnostics(
        predicted.to(wide), scale, noise, keep, sigma_range=settings.sigma_range
    )
