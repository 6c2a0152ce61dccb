"""The second view of a batch, X~ = X + eps for some structures, alone or after the first view."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from torch import Tensor

from fairchem_kit.words import counted

# Entries of a batch by which it asks the model for a second view.
EPS = "ndem_eps"  # (N, 3) | displacement of each atom, Angstrom
VIEWED = "ndem_viewed"  # (N,) bool | atoms of the structures that get a second view
# Marks a batch with second views; the auxiliary head does not run on any other.
SECOND = "ndem_second"

_OF_ATOMS = ("pos", "atomic_numbers", "fixed", "tags")
_OF_STRUCTURES = ("cell", "pbc", "natoms", "charge", "spin")


class Views(NamedTuple):
    """The second view of a batch of N atoms in B structures."""

    second: AtomicData  # M atoms in B2 structures
    atoms: Tensor  # (M,) indices of its atoms among the N
    structures: Tensor  # (B2,) indices of its structures among the B


def second_view(data: AtomicData) -> Views | None:
    """X + eps of the structures with a second view, without labels; None if there are none.

    Edges are dropped, because those of X are not those of X~ (models build their graphs).

    Args:
        data: with ``EPS`` and ``VIEWED``; not changed.
    """
    atoms = data[VIEWED].nonzero().squeeze(-1)
    if atoms.numel() == 0:
        return None
    first = data.natoms.cumsum(0) - data.natoms
    structures = data[VIEWED][first].nonzero().squeeze(-1)
    second = _without_edges(data)
    for key in _OF_ATOMS:
        second[key] = data[key].detach()[atoms]
    for key in _OF_STRUCTURES:
        second[key] = data[key].detach()[structures]
    second.pos = second.pos + data[EPS][atoms]
    second.batch = torch.arange(len(structures), device=atoms.device).repeat_interleave(
        second.natoms, output_size=len(atoms)
    )
    chosen = structures.tolist()
    second.sid, second.dataset = ([data[key][i] for i in chosen] for key in ("sid", "dataset"))
    second[SECOND] = torch.ones(1, device=atoms.device)
    return Views(second, atoms, structures)


def join_views(data: AtomicData, views: Views) -> AtomicData:
    """A joint batch without labels: the structures, followed by their second views."""
    joint = _without_edges(data)
    for key in (*_OF_ATOMS, *_OF_STRUCTURES):
        joint[key] = torch.cat([data[key], views.second[key]])
    joint.batch = torch.cat([data.batch, views.second.batch + data.natoms.numel()])
    joint.sid = [*data.sid, *views.second.sid]
    joint.dataset = [*data.dataset, *views.second.dataset]
    joint[SECOND] = views.second[SECOND]
    return joint


def first_part(output: object, rows: dict[int, int]) -> object:
    """The part of a head's output over a joint batch that belongs to the first view.

    Args:
        output: a tensor, or a dictionary of such outputs.
        rows: {number of rows for both views: number of rows for the first view}.

    Raises:
        ValueError: if an output is neither per atom nor per structure.
    """
    if isinstance(output, dict):
        return {name: first_part(part, rows) for name, part in output.items()}
    assert isinstance(output, Tensor)
    if output.shape[0] not in rows:
        raise ValueError(
            f"A head returned {counted(output.shape[0], 'row')} for a batch of "
            f"{' or '.join(map(str, rows))} (atoms or structures of two views)."
        )
    return output[: rows[output.shape[0]]]


def _without_edges(data: AtomicData) -> AtomicData:
    """An otherwise empty batch with an empty graph."""
    new = copy.copy(data)
    new.__keys__ = set()
    new.edge_index = data.edge_index.new_zeros((2, 0))
    new.cell_offsets = data.cell_offsets.new_zeros((0, 3))
    new.nedges = torch.zeros_like(data.nedges[:1])
    return new
