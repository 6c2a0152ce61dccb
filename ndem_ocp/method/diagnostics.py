"""What is logged about the second view, in physical units: recovered noise and fitted curvature.

Nothing here contributes to the gradient. Each quantity is a ratio of two sums (a ``Tally``), so
that averages over atoms, steps and ranks are exact.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

QUARTERS = 4  # the range of sigma is divided into so many bins


class Tally(NamedTuple):
    """A mean, stored as two sums: mean = total / weight."""

    total: float
    weight: float


def noise_diagnostics(
    *,
    difference: Tensor,
    scale: Tensor,
    eps: Tensor,
    sigma: Tensor,
    moved: Tensor,
    force_rms: float = 1.0,
    energy_unit: str | None = None,
    sigma_range: tuple[float, float] = (0.0, 0.0),
) -> dict[str, Tally]:
    """Diagnostics over the n atoms in the loss.

    Args:
        difference: (n, 3) what the objective compares with eps*: either f(X) - f'(X~),
            normalised, or the predicted noise.
        scale: (n, 1) the ratio difference / eps at which the loss is zero, 1/Angstrom.
        eps: (n, 3) true noise in Angstrom.
        sigma: (n,) its standard deviation in Angstrom.
        moved: (n,) bool, atoms that are displaced.
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
    mask = moved.to(eps.dtype)  # multiplying avoids the device synchronisation of an index
    recovered = difference / scale
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
        unit = energy_unit.replace("/", "_per_")  # a slash would open a group in W&B
        sums[f"ndem_curvature_{unit}_per_A2"] = (change, eps.square())
    for number, here in enumerate(_quarters(sigma, *sigma_range), start=1):
        name = f"ndem_unrecovered_sigma_{number}of{QUARTERS}"
        sums[name] = (error * here, size * mask * here)
    flat = torch.stack([part.sum() for pair in sums.values() for part in pair]).tolist()
    return {name: Tally(*flat[2 * i : 2 * i + 2]) for i, name in enumerate(sums)}


def _quarters(sigma: Tensor, low: float, high: float) -> list[Tensor]:
    """For each quarter of [low, high], (n,) 1 where sigma lies in it, else 0; [] if high <= low."""
    if high <= low:
        return []
    place = ((sigma - low) / (high - low) * QUARTERS).floor().clamp(0, QUARTERS - 1)
    return [(place == number).to(sigma.dtype) for number in range(QUARTERS)]
