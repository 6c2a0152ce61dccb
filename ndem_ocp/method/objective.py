"""The interface of objectives, and what all of them share: eps*, its scale, and the error per atom.

An objective is one class in one file. It defines its own settings, how its noise is drawn, what the
model sees, its loss, and what is logged.

    objective     the model sees                         the host's loss is on     auxiliary loss
    ndem          X and X + eps in one forward           X                         Eq. 17
      instead     X + eps for some structures            all, with labels of       none
                                                         X + eps
    noisy_nodes   X and X + eps in one forward           X                         Eq. 12
    dens          X + eps, and F(X) where eps != 0       energy: all structures;   DeNS
                                                         forces: uncorrupted atoms
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ndem_ocp.method.diagnostics import Tally
from ndem_ocp.method.noise import Noise, draw_noise
from ndem_ocp.method.settings import NDeMSettings
from ndem_ocp.method.views import with_second_view

FORCES, ENERGY = "forces", "energy"  # names of model outputs and of labels in the data
Mean = Callable[[Tensor], Tensor]


class AuxiliaryLoss(NamedTuple):
    """The auxiliary loss of a step, whatever the objective, and what is logged with it."""

    loss: Tensor  # () | without its coefficient
    log: dict[str, Tally]  # logged quantities, as sums that can be averaged exactly


class Step(NamedTuple):
    """What a loss needs in addition to the model's outputs: N atoms in B structures."""

    batch: Any  # as the model saw it, with labels to match (Objective.labelled)
    noise: Noise
    label: Tensor | None  # (N, 3) normalised forces, None if the data has none
    counted: Tensor  # (N,) bool, atoms that the force loss covers
    force_rms: float  # rms_F of Eq. 10, energy unit per Angstrom; 1 without normalizer
    curvature_factor: Tensor | None  # () learned factor c on eps*, dimensionless
    mean: Mean  # mean of (n,) errors over the atoms of all ranks
    weight: float = 1.0  # lambda_NDeM of this step
    progress: float = 0.0  # fraction of training
    # (output name, batch) -> its normalised labels, as in the host's loss
    normalised: Callable[[str, Any], Tensor] | None = None
    squared: frozenset[str] = frozenset()  # outputs whose loss is the square of a norm


class Objective:
    """One way to train with displaced structures. The defaults are those for two views.

    Attributes:
        name: its value in ``task.ndem.objective``.
        own_settings: settings for this objective, and for any other that lists them. For all other
            objectives they must keep their default.
        model: the kind of model that the host has to build: ``two_view`` (takes X and X + eps, has
            an auxiliary head), ``encoded_forces`` (takes forces as an input, has an auxiliary
            head), or ``plain``.
        head_sign: sign of the auxiliary head's output along eps: -1 if it learns f(X) - eps*, +1 if
            it learns the noise.
    """

    name = ""
    own_settings: tuple[str, ...] = ()
    model = "two_view"
    head_sign = 1

    def __init__(self, settings: NDeMSettings) -> None:
        self.settings = settings

    @classmethod
    def of(cls, settings: NDeMSettings) -> Objective:
        """The objective for these settings."""
        return cls(settings)

    @property
    def needs_main_forces(self) -> bool:
        """Whether the objective uses the main force head or the force labels."""
        return False

    def probability(self, progress: float) -> float | None:
        """Probability that a structure is displaced; None: exactly ``fraction`` of them are."""
        return None

    def draw(self, batch: Any, generator: torch.Generator, progress: float) -> Noise:
        """The noise of a step.

        Args:
            batch: N atoms in B structures: ``pos``, ``batch``, ``natoms`` and, optionally,
                ``fixed``.
            generator: CPU generator, see :func:`ndem_ocp.method.step_generator`.
            progress: fraction of training.
        """
        graphs, fixed = batch.natoms.numel(), batch.get("fixed")
        return draw_noise(batch.pos, batch.batch, graphs, fixed, self.settings, generator, progress)

    def view(self, batch: Any, noise: Noise) -> Any:
        """The batch that the model sees; ``batch`` itself is not changed."""
        return with_second_view(batch, noise.eps, noise.viewed)

    def labelled(self, batch: Any, noise: Noise) -> Any:
        """The batch that the model saw, with labels to match; ``batch`` itself is not changed."""
        return batch

    def main_outputs(self, out: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        """The outputs of the main heads as they enter the host's own losses."""
        return out

    def loss(self, out: dict[str, Tensor], auxiliary: Tensor | None, step: Step) -> AuxiliaryLoss:
        """The auxiliary loss and its log.

        Args:
            out: {output: (N, 3) or (B, k)} of the main heads, normalised.
            auxiliary: (N, 3) of the auxiliary head; None for ``model = "plain"``.
            step: everything else.
        """
        raise NotImplementedError

    def hidden(self, noise: Noise) -> Tensor | None:
        """(N,) bool, atoms whose main force is no prediction for the label; None: no such atoms."""
        return None


def noise_target(noise: Noise, settings: NDeMSettings, force_rms: float) -> Tensor:
    """eps* of Eq. 17, (N, 3), dimensionless like a normalised force.

    Args:
        noise: eps and sigma in Angstrom.
        settings: ``noise_scale``, or ``curvature`` (c of Eq. 16 in energy unit/Angstrom^2).
        force_rms: rms_F of Eq. 10 in energy unit per Angstrom; only used with ``curvature``.
    """
    return noise.eps * target_scale(noise, settings, force_rms)


def target_scale(noise: Noise, settings: NDeMSettings, force_rms: float) -> Tensor:
    """eps*/eps in 1/Angstrom, (N, 1); constant unless ``noise_scale`` is "sigma"."""
    if settings.noise_scale == "sigma" and settings.curvature is None:
        return 1.0 / noise.sigma[:, None]
    return torch.full_like(noise.sigma[:, None], typical_scale(settings, force_rms))


def typical_scale(settings: NDeMSettings, force_rms: float) -> float:
    """eps*/eps in 1/Angstrom as one number; with ``noise_scale: sigma``, its value at sigma_max."""
    if settings.curvature is not None:
        return settings.curvature / force_rms
    if isinstance(settings.noise_scale, str):
        return 1.0 / settings.sigma_range[1]
    return settings.noise_scale


def per_atom_error(residual: Tensor, norm: str) -> Tensor:
    """(n, 3) residual -> (n,): ||r_i||^2 (Eq. 9, 17) or ||r_i|| (fairchem's l2mae)."""
    if norm == "squared_l2":
        return residual.square().sum(-1)
    length: Tensor = torch.linalg.vector_norm(residual, dim=-1)
    return length
