"""The NDeM loss: the one place where eps* and Eq. 17 are written.

    L_NDeM = (1/N) sum_i || (f_i(X) - f'_i(X~)) - eps*_i ||^2                           (Eq. 17)

f is the main force head on X, f' the auxiliary head on X~ = X + eps, both in normalised force
units (raw force / rms_F, Eq. 10). The sign follows from F(X~) - F(X) = -c eps (Eq. 16). Where
labelled second views give the change of the forces itself, -dF / rms_F stands for eps*.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ndem_ocp.method.diagnostics import Tally, noise_diagnostics
from ndem_ocp.method.noise import Noise
from ndem_ocp.method.schedules import SettingsError
from ndem_ocp.method.second_views import change_diagnostics
from ndem_ocp.method.settings import NDeMSettings

Mean = Callable[[Tensor], Tensor]


class Forces(NamedTuple):
    """The three force fields that meet in Eq. 17, all (N, 3) and normalised (force / rms_F)."""

    # f(X), the main head's prediction on the clean structure (not needed for clean_forces: zero)
    clean: Tensor | None
    noisy: Tensor  # f'(X~), the auxiliary head's prediction on the perturbed one
    label: Tensor | None  # f*(X), the label (needed only for clean_forces: label)


class NDeMLoss(NamedTuple):
    """Value and log of the objective."""

    loss: Tensor  # () | L_NDeM, without its coefficient
    log: dict[str, Tally]  # named sums for averaging over atoms, steps and ranks


def noise_target(noise: Noise, settings: NDeMSettings, force_rms: float) -> Tensor:
    """eps* of Eq. 17, (N, 3), dimensionless like a normalised force.

    Args:
        noise: eps and sigma in Angstrom.
        settings: ``noise_scale`` or ``curvature``.
        force_rms: rms_F of Eq. 10 in energy unit per Angstrom; used with ``curvature`` only.
    """
    return noise.eps * target_scale(noise, settings, force_rms)


def target_scale(noise: Noise, settings: NDeMSettings, force_rms: float) -> Tensor:
    """eps*/eps in 1/Angstrom, (N, 1); constant unless ``noise_scale`` is "sigma"."""
    if settings.noise_scale == "sigma" and settings.curvature is None:
        return 1.0 / noise.sigma[:, None]
    return torch.full_like(noise.sigma[:, None], typical_scale(settings, force_rms))


def typical_scale(settings: NDeMSettings, force_rms: float) -> float:
    """eps*/eps in 1/Angstrom as a number; with ``noise_scale: sigma``, its value at sigma_max."""
    if settings.curvature is not None:
        return settings.curvature / force_rms
    if isinstance(settings.noise_scale, str):
        return 1.0 / settings.sigma_range[1]
    return settings.noise_scale


def clean_reference(forces: Forces, settings: NDeMSettings) -> Tensor:
    """What stands for f(X) in Eq. 17, (N, 3), normalised (``clean_forces``)."""
    if settings.clean_forces == "zero":  # equilibrium: F(X) = 0, section 4.2.2
        return torch.zeros_like(forces.noisy)
    if settings.clean_forces == "label":
        if forces.label is None:
            raise SettingsError("task.ndem.clean_forces = 'label' needs force labels in the data.")
        return forces.label
    if forces.clean is None:
        raise SettingsError(
            f"task.ndem.clean_forces = {settings.clean_forces!r} needs a main force head; without "
            "one only 'zero' is possible, for structures at equilibrium."
        )
    return forces.clean if settings.clean_forces == "prediction" else forces.clean.detach()


def ndem_loss(
    forces: Forces,
    noise: Noise,
    counted: Tensor,
    settings: NDeMSettings,
    *,
    force_rms: float = 1.0,
    curvature: Tensor | None = None,
    mean: Mean = torch.mean,
) -> NDeMLoss:
    """Eq. 17 over the atoms that the force loss counts, the unperturbed ones included.

    Args:
        forces: normalised forces, each (N, 3).
        noise: the noise that made X~ from X.
        counted: (N,) bool, atoms that the force loss sees (OC20: the free ones). Atoms of
            structures without a second view are left out as well.
        settings: see :class:`NDeMSettings`.
        force_rms: rms_F of Eq. 10, energy unit per Angstrom.
        curvature: () learned c > 0 with ``learned_curvature``, else None.
        mean: reduces the (n,) error per atom to the mean over all atoms; a host that trains on
            several ranks hands in one that averages over all of them.

    Raises:
        ValueError: if shapes differ (a silent broadcast would hide a mistake).
    """
    for name, field in zip(forces._fields, forces):
        if field is not None and field.shape != noise.eps.shape:
            raise ValueError(
                f"{name} forces have shape {tuple(field.shape)}, eps {tuple(noise.eps.shape)}"
            )
    keep = (counted & noise.viewed).nonzero().squeeze(-1)  # once: it waits for the GPU
    # Half precision would round f - f' away: the difference is taken in float32 at least.
    wide = torch.promote_types(forces.noisy.dtype, torch.float32)
    difference = clean_reference(forces, settings).to(wide) - forces.noisy.to(wide)
    c = 1.0 if curvature is None else curvature
    if noise.labels is not None:  # the change of the forces is known: no c, no eps*
        change = noise.labels.force_change.to(wide) / force_rms
        loss = mean(per_atom_error((difference + change)[keep], settings.norm))
        mask = counted & noise.viewed
        return NDeMLoss(
            loss,
            change_diagnostics(-force_rms * difference, noise, mask, settings.energy_unit),
        )
    residual = difference / c - noise_target(noise, settings, force_rms).to(wide)
    loss = mean(per_atom_error(residual[keep], settings.norm))

    with torch.no_grad():
        scale = target_scale(noise, settings, force_rms).to(wide) * c
        log = noise_diagnostics(
            difference=difference[keep],
            scale=scale[keep],
            eps=noise.eps.to(wide)[keep],
            sigma=noise.sigma.to(wide)[keep],
            moved=noise.moved[keep],
            force_rms=force_rms,
            energy_unit=settings.energy_unit,
            sigma_range=settings.sigma_range,
        )
    return NDeMLoss(loss, log)


def per_atom_error(residual: Tensor, norm: str) -> Tensor:
    """(n, 3) residual -> (n,): ||r_i||^2 (Eq. 9, 17) or ||r_i|| (fairchem's l2mae)."""
    if norm == "squared_l2":
        return residual.square().sum(-1)
    length: Tensor = torch.linalg.vector_norm(residual, dim=-1)
    return length
