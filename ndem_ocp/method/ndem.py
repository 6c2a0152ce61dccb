"""NDeM, the paper's objective: the one place where Eq. 17 is written.

    L_NDeM = (1/N) sum_i || (f_i(X) - f'_i(X~)) - eps*_i ||^2                           (Eq. 17)

f is the main force head on X, f' the auxiliary head on X~ = X + eps, both in normalised force
units (raw force / rms_F, Eq. 10). The sign follows from F(X~) - F(X) = -c eps (Eq. 16). Where
labelled second views give the change of the forces itself, -dF / rms_F stands for eps*.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ndem_ocp.method.diagnostics import noise_diagnostics
from ndem_ocp.method.noise import Noise
from ndem_ocp.method.objective import (
    FORCES,
    Mean,
    NDeMLoss,
    Objective,
    Step,
    noise_target,
    per_atom_error,
    target_scale,
)
from ndem_ocp.method.registry import register
from ndem_ocp.method.schedules import SettingsError
from ndem_ocp.method.second_views import Instead, change_diagnostics
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

    def loss(self, out: dict[str, Tensor], auxiliary: Tensor | None, step: Step) -> NDeMLoss:
        assert auxiliary is not None
        return ndem_loss(
            Forces(out.get(FORCES), auxiliary, step.label),
            step.noise,
            step.counted,
            self.settings,
            force_rms=step.force_rms,
            curvature=step.curvature,
            mean=step.mean,
        )


class Forces(NamedTuple):
    """The three force fields that meet in Eq. 17, all (N, 3) and normalised (force / rms_F)."""

    # f(X), the main head's prediction on the clean structure (not needed for clean_forces: zero)
    clean: Tensor | None
    noisy: Tensor  # f'(X~), the auxiliary head's prediction on the perturbed one
    label: Tensor | None  # f*(X), the label (needed only for clean_forces: label)


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
