"""NDeM, the paper's objective: the one place where Eq. 17 is written.

    L_NDeM = (1/N) sum_i || (f_i(X) - f'_i(X~)) - eps*_i ||^2                           (Eq. 17)

f is the main force head on X, f' the auxiliary head on X~ = X + eps, both in normalised force
units (raw force / rms_F, Eq. 10). The sign follows from F(X~) - F(X) = -c eps (Eq. 16). If
second views have force labels, dF = F(X~) - F(X) is known, and -dF / rms_F replaces eps*.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ndem_ocp.method.diagnostics import change_diagnostics, noise_diagnostics
from ndem_ocp.method.noise import Noise
from ndem_ocp.method.objective import (
    FORCES,
    AuxiliaryLoss,
    Mean,
    Objective,
    Step,
    noise_target,
    per_atom_error,
    target_scale,
)
from ndem_ocp.method.registry import register
from ndem_ocp.method.schedules import SettingsError
from ndem_ocp.method.second_views import Instead
from ndem_ocp.method.settings import NDeMSettings


@register
class NDeM(Objective):
    """Node denoising on non-equilibrium molecules; with ``place: instead``, :class:`Instead`."""

    name = "ndem"
    own_settings = (
        "target",
        "place",
        "fraction",
        "curvature",
        "learned_curvature",
        "clean_forces",
        "head",
    )
    head_sign = -1

    @classmethod
    def of(cls, settings: NDeMSettings) -> Objective:
        return Instead(settings) if settings.instead else cls(settings)

    @property
    def needs_main_forces(self) -> bool:
        return self.settings.target != "isotropic" or self.settings.clean_forces != "zero"

    def loss(self, out: dict[str, Tensor], auxiliary: Tensor | None, step: Step) -> AuxiliaryLoss:
        assert auxiliary is not None
        return ndem_loss(
            Forces(out.get(FORCES), auxiliary, step.label),
            step.noise,
            step.counted,
            self.settings,
            force_rms=step.force_rms,
            curvature_factor=step.curvature_factor,
            mean=step.mean,
        )


class Forces(NamedTuple):
    """The forces in Eq. 17, all (N, 3) and normalised (force / rms_F)."""

    # f(X), the main head's prediction on the clean structure (not needed for clean_forces: zero)
    clean: Tensor | None
    noisy: Tensor  # f'(X~), the auxiliary head's prediction on the perturbed one
    label: Tensor | None  # f*(X), the label (needed only for clean_forces: label)


def clean_reference(forces: Forces, settings: NDeMSettings) -> Tensor:
    """f(X) of Eq. 17 as ``clean_forces`` defines it, (N, 3), normalised."""
    if settings.clean_forces == "zero":  # equilibrium: F(X) = 0, section 4.2.2
        return torch.zeros_like(forces.noisy)
    if settings.clean_forces == "label":
        if forces.label is None:
            raise SettingsError("task.ndem.clean_forces = 'label' needs force labels in the data.")
        return forces.label
    if forces.clean is None:
        raise SettingsError(
            f"task.ndem.clean_forces = {settings.clean_forces!r} needs a main force head. Without "
            "one, only 'zero' is possible, which is for structures at equilibrium."
        )
    return forces.clean if settings.clean_forces == "prediction" else forces.clean.detach()


def ndem_loss(
    forces: Forces,
    noise: Noise,
    counted: Tensor,
    settings: NDeMSettings,
    *,
    force_rms: float = 1.0,
    curvature_factor: Tensor | None = None,
    mean: Mean = torch.mean,
) -> AuxiliaryLoss:
    """Eq. 17 over the atoms in the force loss, including unperturbed ones.

    Args:
        forces: normalised forces, each (N, 3).
        noise: the noise that made X~ from X.
        counted: (N,) bool, atoms that the force loss covers (OC20: the free ones). Atoms of
            structures without a second view are left out in any case.
        settings: see :class:`NDeMSettings`.
        force_rms: rms_F of Eq. 10, energy unit per Angstrom.
        curvature_factor: () the learned factor c > 0 in f(X) - f'(X~) = c eps*, dimensionless,
            with ``learned_curvature``; else None.
        mean: the mean of (n,) errors per atom; with several ranks, pass one that averages over
            the atoms of all of them.

    Raises:
        ValueError: if shapes differ (broadcasting would hide the mistake).
    """
    for name, field in zip(forces._fields, forces):
        if field is not None and field.shape != noise.eps.shape:
            raise ValueError(
                f"{name} forces have shape {tuple(field.shape)}, eps {tuple(noise.eps.shape)}"
            )
    included = counted & noise.viewed
    keep = included.nonzero().squeeze(-1)  # only once, because it waits for the GPU
    # At least float32: half precision would lose the small difference f - f'.
    wide = torch.promote_types(forces.noisy.dtype, torch.float32)
    # f(X) - f'(X~)
    difference = clean_reference(forces, settings).to(wide) - forces.noisy.to(wide)
    c = 1.0 if curvature_factor is None else curvature_factor
    if noise.labels is None:
        eps_star = noise_target(noise, settings, force_rms).to(wide)
    else:  # the change of the forces is known
        eps_star = -noise.labels.force_change.to(wide) / force_rms
    residual = difference / c - eps_star
    loss = mean(per_atom_error(residual[keep], settings.norm))  # (1/N) sum || ... ||^2
    if noise.labels is not None:
        change = -force_rms * difference
        log = change_diagnostics(change, noise, included, settings.energy_unit)
        return AuxiliaryLoss(loss, log)
    log = noise_diagnostics(
        difference,
        target_scale(noise, settings, force_rms).to(wide) * c,
        noise,
        keep,
        force_rms=force_rms,
        energy_unit=settings.energy_unit,
        sigma_range=settings.sigma_range,
    )
    return AuxiliaryLoss(loss, log)
