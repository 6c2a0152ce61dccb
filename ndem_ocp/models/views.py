"""A joint batch of two views: the clean structures, followed by their perturbed copies.

It allows one forward over both views instead of two. fairchem's EquiformerV2 stores state of a
forward on its modules, so that two forwards with activation checkpointing give wrong gradients; and
DDP allows one forward per backward.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_kit.errors import ConfigError
from fairchem_kit.words import counted
from ndem_ocp.method.views import EPS, JOINT, VIEWED, with_second_view

__all__ = ["EPS", "JOINT", "VIEWED", "Views", "join_views", "split_output", "with_second_view"]

FIRST_ATOMS = "ndem_first_atoms"  # number of atoms in the first of two views


class Views(NamedTuple):
    """A joint batch, and how it is divided."""

    joint: Batch  # B clean structures, followed by the perturbed ones
    num_atoms: int  # N, number of clean atoms
    num_graphs: int  # B, number of clean structures
    second_atoms: Tensor  # (M,) for each atom of the second view, its index among the N clean atoms


def join_views(marked: Batch) -> Views:
    """Append the second views X~ = X + eps to the structures of a marked batch.

    Attributes per atom and per structure are repeated for the second view. Attributes per edge are
    dropped, because the edges of X are not those of X~ (models build graphs on the fly).

    Args:
        marked: batch of B structures from :func:`with_second_view`.
    """
    ptr, device = marked.ptr, marked.pos.device
    atoms = marked[VIEWED].nonzero().squeeze(-1)
    graphs = marked[VIEWED][ptr[:-1].to(device)].nonzero().squeeze(-1)
    num_atoms, num_graphs = marked.pos.shape[0], ptr.numel() - 1
    host_ptr, host_graphs = ptr.cpu(), torch.arange(num_graphs + 1)

    joint = Batch()
    levels: dict[str, str] = {}
    for key, value in marked.items():
        if key in (EPS, VIEWED, "batch", "ptr"):
            continue
        slices = marked._slice_dict.get(key)
        if slices is not None and torch.equal(torch.as_tensor(slices), host_ptr):
            levels[key] = "atom"
        elif slices is not None and torch.equal(torch.as_tensor(slices), host_graphs):
            levels[key] = "graph"
        else:
            continue
        chosen = atoms if levels[key] == "atom" else graphs
        if isinstance(value, Tensor):
            joint[key] = torch.cat([value, value[chosen.to(value.device)]])
        else:
            joint[key] = [*value, *(value[i] for i in chosen.tolist())]
    joint.pos = torch.cat([marked.pos, marked.pos[atoms] + marked[EPS][atoms]])

    counts = joint.natoms
    graphs_of_joint = torch.arange(counts.numel(), device=device)
    joint.batch = graphs_of_joint.repeat_interleave(counts, output_size=len(joint.pos))
    joint.ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    joint[JOINT] = True
    joint[FIRST_ATOMS] = num_atoms
    _describe_slices(joint, levels)
    return Views(joint, num_atoms, num_graphs, atoms)


def _describe_slices(joint: Batch, levels: dict[str, str]) -> None:
    """Set the attributes by which torch_geometric can split the batch into structures again."""
    graphs = joint.natoms.numel()
    slices = {"atom": joint.ptr.cpu(), "graph": torch.arange(graphs + 1)}
    joint._num_graphs = graphs
    joint._slice_dict = {key: slices[level] for key, level in levels.items()}
    joint._inc_dict = {key: torch.zeros(graphs, dtype=torch.long) for key in levels}


def split_output(value: Tensor, views: Views) -> tuple[Tensor, Tensor]:
    """Split a model output over a joint batch into (clean, second view).

    Raises:
        ConfigError: if the output is neither per atom nor per structure.
    """
    rows = value.shape[0]
    if rows == views.joint.pos.shape[0]:
        return value[: views.num_atoms], value[views.num_atoms :]
    if rows == views.joint.natoms.numel():
        return value[: views.num_graphs], value[views.num_graphs :]
    raise ConfigError(
        f"A head returned {counted(rows, 'row')} for {counted(views.joint.pos.shape[0], 'atom')} "
        f"in {counted(views.joint.natoms.numel(), 'structure')}: it must return one per atom or "
        "per structure."
    )
