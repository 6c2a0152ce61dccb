"""Two relatives of NDeM, in which the auxiliary head predicts the noise itself.

    noisy_nodes: L = (1/N) sum_i     || d_i(X~)       - eps*_i ||^2                     (Eq. 12)
    dens:        L = (1/N) sum_i m_i || d_i(X~, F(X)) - eps*_i ||^2     (Liao et al., TMLR 2024)

d is the auxiliary head, eps* = scale * eps as in Eq. 17, m_i = 1 on corrupted atoms. The sign is
plain: d = +eps*. (An NDeM with F(X) = 0 learns d = -eps* by the same loss.) In DeNS the force loss
of the main head belongs to the other atoms, 1 - m_i, with the same 1/N.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ndem_ocp.method.diagnostics import Tally, noise_diagnostics
from ndem_ocp.method.noise import Noise
from ndem_ocp.method.objective import (
    Mean,
    NDeMLoss,
    noise_target,
    per_atom_error,
    target_scale,
)
from ndem_ocp.method.settings import NDeMSettings


def noisy_nodes_loss(
    predicted: Tensor,
    noise: Noise,
    counted: Tensor,
    settings: NDeMSettings,
    *,
    mean: Mean = torch.mean,
) -> NDeMLoss:
    """Classical denoising (Eq. 12) over the atoms that the force loss counts.

    Args:
        predicted: (N, 3) d(X~), dimensionless; zeros where there is no second view.
        noise: the noise that made X~ from X.
        counted: (N,) bool, as in :func:`ndem_ocp.method.ndem_loss`: unperturbed atoms count,
            structures without a second view do not.
        settings: norm and scale of eps*.
        mean: reduces the (n,) error per atom over all ranks.

    Raises:
        ValueError: if shapes differ.
    """
    keep = counted & noise.viewed
    error = _error(predicted, noise, settings)
    return NDeMLoss(mean(error[keep]), _diagnostics(predicted, noise, keep, settings))


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
    error = _error(predicted, noise, settings)
    loss = mean((error * noise.moved)[keep])
    return NDeMLoss(loss, _diagnostics(predicted, noise, keep & noise.viewed, settings))


def forces_of_clean_atoms(predicted: Tensor, label: Tensor, noise: Noise) -> Tensor:
    """Main head's forces for DeNS's force loss, (N, 3): the label stands on corrupted atoms.

    Their error and gradient are then zero under any force loss, and its 1/N stays. The result has
    the wider of the two dtypes: a rounded label would have an error.
    """
    return torch.where(noise.moved[:, None], label, predicted)


def forces_to_tell(label: Tensor, noise: Noise) -> Tensor:
    """F(X) as DeNS feeds it to the model, (N, 3): the label on corrupted atoms, 0 elsewhere."""
    return label * noise.moved[:, None].to(label.dtype)


def _error(predicted: Tensor, noise: Noise, settings: NDeMSettings) -> Tensor:
    """(N,) || d - eps* || in the norm of the settings, in float32 at least."""
    if predicted.shape != noise.eps.shape:
        raise ValueError(
            f"The predicted noise has shape {tuple(predicted.shape)}, eps {tuple(noise.eps.shape)}"
        )
    wide = torch.promote_types(predicted.dtype, torch.float32)
    target = noise_target(noise, settings, force_rms=1.0).to(wide)
    return per_atom_error(predicted.to(wide) - target, settings.norm)


@torch.no_grad()
def _diagnostics(
    predicted: Tensor, noise: Noise, keep: Tensor, settings: NDeMSettings
) -> dict[str, Tally]:
    wide = torch.promote_types(predicted.dtype, torch.float32)
    return noise_diagnostics(
        difference=predicted.to(wide)[keep],
        scale=target_scale(noise, settings, 1.0).to(wide)[keep],
        eps=noise.eps.to(wide)[keep],
        sigma=noise.sigma.to(wide)[keep],
        moved=noise.moved[keep],
        sigma_range=settings.sigma_range,
    )
