"""What is logged about second views, in physical units: recovered noise, fitted curvature, or how
well a known change of the forces is predicted.

Nothing here contributes to the gradient. Each quantity is a ratio of two sums (a ``Tally``), so
that averages over atoms, steps and ranks are exact.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ndem_ocp.method.noise import Noise

QUARTERS = 4  # bins into which the range of sigma is divided


class Tally(NamedTuple):
    """A mean, stored as two sums: mean = total / weight."""

    total: float
    weight: float


@torch.no_grad()
def noise_diagnostics(
    difference: Tensor,
    scale: Tensor,
    noise: Noise,
    keep: Tensor,
    *,
    force_rms: float = 1.0,
    energy_unit: str | None = None,
    sigma_range: tuple[float, float] = (0.0, 0.0),
) -> dict[str, Tally]:
    """How well the noise is recovered, over the n atoms in the loss.

    Args:
        difference: (N, 3) what the objective compares with eps*: either f(X) - f'(X~),
            normalised, or the predicted noise.
        scale: (N, 1) the ratio difference / eps at which the loss is zero, 1/Angstrom.
        noise: the true noise.
        keep: (N,) bool or (n,) indices, the atoms in the loss.
        force_rms: rms_F in energy unit per Angstrom.
        energy_unit: for the name of the fitted curvature; None where ``difference`` is not a
            difference of forces, which has no curvature.
        sigma_range: [sigma_min, sigma_max] in Angstrom.

    Returns:
        ``ndem_noise_error_A``: | eps_hat - eps | over moved atoms, eps_hat = difference / scale;
        ``ndem_noise_size_A``: | eps | over the same atoms, which is the error of predicting zero;
        ``ndem_noise_cosine``: cosine of eps_hat and eps over moved atoms;
        ``ndem_curvature_<unit>_per_A2``: the curvature that the two force heads show, a
        least-squares fit of c in F(X) - F'(X~) = c eps (Eq. 16); only with an ``energy_unit``. It
        is neither the setting ``task.ndem.curvature`` nor the curvature of the data;
        ``ndem_sigma_A``: the sampled sigma;
        ``ndem_unrecovered_sigma_1of4`` to ``4of4``: sum of | eps_hat - eps | divided by sum of
        | eps |, over the moved atoms whose sigma lies in that quarter of ``sigma_range``. 0: all of
        their noise is recovered; 1: as good as predicting zero.
    """
    difference = difference[keep]
    eps, sigma = noise.eps.to(difference.dtype)[keep], noise.sigma.to(difference.dtype)[keep]
    # multiplying by a mask avoids the device synchronisation of an index
    mask = noise.moved[keep].to(eps.dtype)
    recovered = difference / scale.to(difference.dtype)[keep]
    size = eps.norm(dim=-1)
    cosine = (recovered * eps).sum(-1) / (recovered.norm(dim=-1) * size).clamp_min(1e-12)
    ones = torch.ones_like(sigma)
    error = (recovered - eps).norm(dim=-1) * mask
    sums = {
        "ndem_noise_error_A": (error, mask),
        "ndem_noise_size_A": (size * mask, mask),
        "ndem_noise_cosine": (cosine * mask, mask),
        "ndem_sigma_A": (sigma, ones),
    }
    if energy_unit is not None:
        change = difference * eps * force_rms
        sums[f"ndem_curvature_{_in_names(energy_unit)}_per_A2"] = (change, eps.square())
    for number, here in enumerate(_quarters(sigma, *sigma_range), start=1):
        name = f"ndem_unrecovered_sigma_{number}of{QUARTERS}"
        sums[name] = (error * here, size * mask * here)
    return _tallies(sums)


def _quarters(sigma: Tensor, low: float, high: float) -> list[Tensor]:
    """For each quarter of [low, high], (n,) 1 where sigma lies in it, else 0; [] if high <= low."""
    if high <= low:
        return []
    place = ((sigma - low) / (high - low) * QUARTERS).floor().clamp(0, QUARTERS - 1)
    return [(place == number).to(sigma.dtype) for number in range(QUARTERS)]


@torch.no_grad()
def change_diagnostics(
    predicted: Tensor, noise: Noise, keep: Tensor, energy_unit: str
) -> dict[str, Tally]:
    """How well the model predicts the change of the forces from X to X + eps, over moved atoms.

    Args:
        predicted: (N, 3) the model's change of forces, not normalised.
        noise: with labels. keep: (N,) bool, atoms to include. energy_unit: for the names.

    Returns:
        ``ndem_change_error_<unit>_per_A``: mean |predicted - label| of an atom's vector;
        ``ndem_change_size_<unit>_per_A``: mean |label|, which is the error of predicting no change;
        ``ndem_change_slope``: least-squares slope of predictions over labels, ideally 1;
        ``ndem_change_cosine``: mean cosine of the two; ``ndem_sigma_A``: mean sigma of the views.
    """
    assert noise.labels is not None
    given = noise.labels.force_change.to(predicted.dtype)
    mask = (keep & noise.moved).to(predicted.dtype)
    size = given.norm(dim=-1)
    error = (predicted - given).norm(dim=-1)
    product = (predicted * given).sum(-1)
    cosine = product / (predicted.norm(dim=-1) * size).clamp_min(1e-12)
    unit = _in_names(energy_unit)
    sums = {
        f"ndem_change_error_{unit}_per_A": (error * mask, mask),
        f"ndem_change_size_{unit}_per_A": (size * mask, mask),
        "ndem_change_slope": (product * mask, size.square() * mask),
        "ndem_change_cosine": (cosine * mask, mask),
        "ndem_sigma_A": (noise.sigma.to(mask.dtype) * mask, mask),
    }
    return _tallies(sums)


def _tallies(sums: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tally]:
    """The sums over atoms of {name: (value, weight) of each atom}, copied from the GPU at once."""
    flat = torch.stack([part.sum() for pair in sums.values() for part in pair]).tolist()
    return {name: Tally(*flat[2 * i : 2 * i + 2]) for i, name in enumerate(sums)}


def _in_names(unit: str) -> str:
    return unit.replace("/", "_per_")  # a slash would open a group in W&B
