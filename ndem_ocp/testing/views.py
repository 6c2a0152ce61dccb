"""Models and batches with two views, and random motions to test their equivariance."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from fairchem.core.common.registry import registry
from fairchem.core.datasets import data_list_collater
from torch import Tensor
from torch_geometric.data import Batch, Data

from ndem_ocp.method import NDeMSettings, Noise, draw_noise, step_generator
from ndem_ocp.models import AUXILIARY_OUTPUT, two_view_config, with_second_view
from ndem_ocp.testing.precision import default_dtype, use_float64_graphs


class Motion(NamedTuple):
    """x -> x @ turn + shift for every structure, and another order of its atoms."""

    turn: Tensor  # (3, 3) rotation, float64
    shift: Tensor  # (3,) | Angstrom
    orders: list[Tensor]  # per structure: which atom comes first, second, ...


def build(
    model: dict[str, Any], dtype: torch.dtype = torch.float32, seed: int = 0, **ndem: Any
) -> torch.nn.Module:
    """The two-view model of a ``model`` section; with ``coefficient: 0`` the plain model."""
    settings = NDeMSettings.from_mapping(ndem)
    config = two_view_config(model, settings) if settings.active else copy.deepcopy(model)
    with default_dtype(dtype):
        torch.manual_seed(seed)
        built = registry.get_model_class(config.pop("name"))(**config).to(dtype)
    if dtype == torch.float64:
        use_float64_graphs(built)
    return built


def wake(model: torch.nn.Module, gain: float = 1.0, seed: int = 1) -> None:
    """Move away from the initial weights, which can hide a broken symmetry: zeros are replaced by
    small numbers, and weight matrices are multiplied by ``gain``."""
    generator = torch.Generator().manual_seed(seed)
    amplify(model, gain)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(0.1 * noise)


def amplify(model: torch.nn.Module, gain: float) -> None:
    """Multiply all trainable weight matrices by ``gain``."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and parameter.requires_grad:
                parameter.mul_(gain)


def collate(structures: list[Data], dtype: torch.dtype = torch.float32) -> Batch:
    """A batch of copies, positions and cells in ``dtype``."""
    batch = data_list_collater([item.clone() for item in structures], otf_graph=True)
    batch.pos, batch.cell = batch.pos.to(dtype), batch.cell.to(dtype)
    return batch


def draw(structures: list[Data], step: int = 0, sigma: float = 0.05) -> Noise:
    """The noise of one training step for these structures, half of their free atoms moved."""
    batch = collate(structures)
    settings = NDeMSettings(sigma_max=sigma, sigma_distribution="fixed")
    return draw_noise(
        batch.pos,
        batch.batch,
        len(structures),
        batch.fixed,
        settings,
        step_generator(0, 0, step),
    )


def noised(
    structures: list[Data],
    noise: Noise,
    dtype: torch.dtype = torch.float32,
    motion: Motion | None = None,
) -> Batch:
    """A batch with a second view, moved as a whole if a motion is given."""
    if motion is None:
        return with_second_view(collate(structures, dtype), noise.eps.to(dtype), noise.viewed)
    turn = motion.turn.to(dtype)
    sizes = [int(item.natoms) for item in structures]
    atoms = torch.cat([
        order + start
        for order, start in zip(motion.orders, torch.tensor([0, *sizes]).cumsum(0).tolist())
    ])  # fmt: skip
    batch = collate([_reordered(s, order) for s, order in zip(structures, motion.orders)], dtype)
    batch.pos = batch.pos @ turn + motion.shift.to(dtype)
    batch.cell = batch.cell @ turn
    return with_second_view(batch, noise.eps.to(dtype)[atoms] @ turn, noise.viewed[atoms])


def random_motion(structures: list[Data], seed: int = 0) -> Motion:
    """A rotation (no reflection), a shift of some Angstrom and a shuffle."""
    generator = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    shift = torch.randn(3, generator=generator, dtype=torch.float64)
    orders = [torch.randperm(int(s.natoms), generator=generator) for s in structures]
    return Motion(turn * torch.linalg.det(turn), shift, orders)


def undo(out: dict[str, Tensor], motion: Motion) -> dict[str, Tensor]:
    """Outputs on moved structures, rotated back and in the original order of atoms."""
    start, atoms = 0, []
    for order in motion.orders:
        atoms.append(torch.argsort(order) + start)
        start += order.numel()
    atoms = torch.cat(atoms)
    back = dict(out)
    for name in ("forces", AUXILIARY_OUTPUT):
        back[name] = out[name][atoms] @ motion.turn.to(out[name].dtype).T
    return back


def outputs(out: dict[str, Any]) -> dict[str, Tensor]:
    """A hydra model's outputs by name: energy (B,), forces (N, 3), noisy_forces."""
    flat: dict[str, Tensor] = {}
    for name, value in out.items():
        flat.update({name: value} if isinstance(value, Tensor) else value)
    return {name: t.view(-1) if name == "energy" else t for name, t in flat.items()}


def _reordered(structure: Data, order: Tensor) -> Data:
    """The same structure with its atoms in another order."""
    moved = structure.clone()
    for key, value in structure.to_dict().items():
        if isinstance(value, Tensor) and value.dim() and value.shape[0] == order.numel():
            moved[key] = value[order]
    return moved
