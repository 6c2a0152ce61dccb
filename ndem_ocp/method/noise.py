"""Multi-scale masked noise: X~ = X + eps (Eq. 11, section 4.3.2).

All random numbers come from a generator that the caller passes in. So the noise of a step can be
reproduced from (seed, rank, step) alone, and the global random state is never touched.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import torch
from torch import Tensor

from ndem_ocp.method.registry import objective_of
from ndem_ocp.method.settings import NDeMSettings


class ViewLabels(NamedTuple):
    """Labels of displaced structures, in the units of the data (not normalised)."""

    force_change: Tensor  # (N, 3) | s [T(X + eps) - T(X)], 0 where there is no view
    energy_remainder: Tensor  # (B,) | s [T_E(X + eps) - T_E(X) + T(X) . eps], beyond first order
    force_error: Tensor  # (N,) | expected error of force_change: delta |force_change|


class Noise(NamedTuple):
    """The noise of one batch of N atoms in B structures."""

    eps: Tensor  # (N, 3) | displacement in Angstrom, exactly 0 on atoms that are not moved
    sigma: Tensor  # (N,) | standard deviation of the noise in the atom's structure, Angstrom
    moved: Tensor  # (N,) bool | atoms that are displaced
    viewed: Tensor  # (N,) bool | atoms of structures that get a second view (dens: corrupted ones)
    labels: ViewLabels | None = None  # of second views with known forces or energies

    def to(self, device: torch.device) -> Noise:
        """The same noise on a device."""
        eps, sigma, moved, viewed = (part.to(device) for part in self[:4])
        labels = self.labels and ViewLabels(*(part.to(device) for part in self.labels))
        return Noise(eps, sigma, moved, viewed, labels)


def step_generator(seed: int, rank: int, step: int) -> torch.Generator:
    """A CPU generator that depends on (seed, rank, step) alone.

    The three numbers are hashed, so that neighbouring steps or ranks have unrelated noise. The
    generator is always on the CPU, so that a run has the same noise on CPU and on CUDA.
    """
    digest = hashlib.blake2b(f"ndem:{seed}:{rank}:{step}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def draw_noise(
    pos: Tensor,
    graph_index: Tensor,
    num_graphs: int,
    fixed: Tensor | None,
    settings: NDeMSettings,
    generator: torch.Generator,
    progress: float = 0.0,
) -> Noise:
    """Draw eps_i ~ N(0, sigma^2 I) on a random subset of the movable atoms of each structure.

    Args:
        pos: (N, 3) positions in Angstrom; only its shape, dtype and device are used.
        graph_index: (N,) structure of each atom, 0 <= graph_index < num_graphs.
        num_graphs: B, number of structures.
        fixed: (N,) 1 for atoms that are fixed in the data, else 0; None: no atom is fixed.
        settings: sigma range and distribution, corrupt_ratio, fraction, and which atoms may move.
        generator: CPU generator, see :func:`step_generator`.
        progress: fraction of training, for settings that are schedules.

    Returns:
        Noise on the device and in the dtype of ``pos``.
    """
    num_atoms = pos.shape[0]
    cpu_index = graph_index.cpu()
    viewed = choose_graphs(num_graphs, settings, generator, progress)[cpu_index]
    movable = torch.ones(num_atoms, dtype=torch.bool)
    if settings.atoms == "free" and fixed is not None:
        movable = fixed.cpu() == 0
    moved = viewed & _choose_atoms(
        movable, cpu_index, num_graphs, settings.corrupt_ratio, generator
    )
    sigma = _draw_sigma(num_graphs, settings, generator)[cpu_index]
    unit = torch.randn(num_atoms, 3, generator=generator, dtype=torch.float64)
    eps = unit * (sigma * moved)[:, None]

    def on_device(value: Tensor, dtype: torch.dtype) -> Tensor:
        """Copy without waiting for the device."""
        return value.to(dtype).to(pos.device, non_blocking=True)

    return Noise(
        eps=on_device(eps, pos.dtype),
        sigma=on_device(sigma, pos.dtype),
        moved=on_device(moved, torch.bool),
        viewed=on_device(viewed, torch.bool),
    )


def _draw_sigma(num_graphs: int, settings: NDeMSettings, generator: torch.Generator) -> Tensor:
    """(B,) float64 standard deviations in Angstrom, all equal when drawn once per batch."""
    low, high = settings.sigma_range
    count = num_graphs if settings.sigma_per == "graph" else 1
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    if settings.sigma_distribution == "fixed":
        sigma = torch.full_like(uniform, high)
    elif settings.sigma_distribution == "uniform":
        sigma = low + (high - low) * uniform
    else:
        sigma = torch.exp(math.log(low) + (math.log(high) - math.log(low)) * uniform)
    return sigma.expand(num_graphs)


def _choose_atoms(
    movable: Tensor, graph_index: Tensor, num_graphs: int, ratio: float, generator: torch.Generator
) -> Tensor:
    """(N,) bool: in each structure, ceil(ratio * movable) of the movable atoms, chosen at random.

    With an exact count (and not a probability per atom), no small structure is left without noise.
    """
    key = torch.rand(movable.shape[0], generator=generator, dtype=torch.float64)
    key = torch.where(movable, key, torch.full_like(key, 2.0))  # immovable atoms come last
    by_key = torch.argsort(key, stable=True)
    order = by_key[torch.argsort(graph_index[by_key], stable=True)]
    counts = torch.bincount(graph_index, minlength=num_graphs)
    starts = torch.cumsum(counts, 0) - counts
    place = torch.empty_like(order)  # rank of the atom within its structure
    place[order] = torch.arange(order.numel()) - starts[graph_index[order]]
    movable_counts = torch.bincount(graph_index[movable], minlength=num_graphs)
    quota = torch.ceil(ratio * movable_counts.double() - 1e-9).long()
    return movable & (place < quota[graph_index])


def choose_graphs(
    num_graphs: int, settings: NDeMSettings, generator: torch.Generator, progress: float = 0.0
) -> Tensor:
    """(B,) bool: the structures that get noise.

    With ``place: beside``, ceil(fraction * B) structures at random: at least one on every rank,
    because DDP needs every rank to use the auxiliary head in every step. With DeNS, and with
    ``place: instead``, each structure with a given probability. There may then be none, because
    the heads see the whole batch anyway.
    """
    probability: float | None = objective_of(settings).probability(progress)
    if probability is not None:
        return torch.rand(num_graphs, generator=generator, dtype=torch.float64) < probability
    if settings.fraction >= 1 or num_graphs == 0:
        return torch.ones(num_graphs, dtype=torch.bool)
    count = max(1, math.ceil(settings.fraction * num_graphs - 1e-9))
    chosen = torch.zeros(num_graphs, dtype=torch.bool)
    chosen[torch.randperm(num_graphs, generator=generator)[:count]] = True
    return chosen
