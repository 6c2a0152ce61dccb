"""What all layers know of the edges, made once per forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ndem_ocp.models.equiformer import kernels
from ndem_ocp.models.equiformer.constants import index
from ndem_ocp.models.equiformer.ends import ByNode, Ends, by_node
from ndem_ocp.models.equiformer.layout import Layout


@dataclass
class Edges:
    """Edges of a batch, sorted by target, with what no layer changes.

    An argument of every layer and never an attribute of a module, so that two forwards before a
    backward, or activation checkpointing, cannot mix them up.
    """

    source: Tensor  # (E,)
    target: Tensor  # (E,)
    distance: Tensor  # (E, G) smeared distances, with species if layers share those
    source_species: Tensor  # (E,)
    target_species: Tensor  # (E,)
    frames: Tensor  # (E, R, K) Wigner matrices, rows as in layout
    layout: Layout
    num_nodes: int
    _made: dict[object, Any] = field(default_factory=dict)

    def once(self, key: object, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made at the first call with this key: constants of all layers,
        which would otherwise go to the device once in each."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def ends(self, dtype: torch.dtype, layout: Layout | None = None) -> Ends:
        """Ends with frames of a type, for a layout that keeps a part of the degrees; kept."""
        layout = layout or self.layout

        def make() -> Ends:
            frames = self.frames
            if layout is not self.layout:
                rows = index(layout.rows_within(self.layout), frames)
                frames = frames[:, rows, layout.node_rows].contiguous()
            return Ends(self.source, self.target, frames.to(dtype), self._by_node(dtype))

        return self.once(("ends", dtype, layout), make)

    def _by_node(self, dtype: torch.dtype) -> ByNode | None:
        if not kernels.usable(self.frames.new_empty(0, dtype=dtype)):
            return None
        return self.once("by node", lambda: by_node(self.source, self.target, self.num_nodes))

    def first_edge(self, atom: int) -> int:
        """Number of edges to the atoms before this one. Waits for the device once for each atom
        between the first and the last, so ask before there is much to wait for."""
        if atom <= 0 or atom >= self.num_nodes:
            return 0 if atom <= 0 else len(self.target)
        return self.once(("first edge", atom), lambda: int((self.target < atom).sum()))

    def between(self, atoms: slice) -> Edges:
        """The edges among a run of atoms that has edges with no others, its first atom as 0."""
        first, end = self.first_edge(atoms.start), self.first_edge(atoms.stop)
        part = slice(first, end)
        return Edges(
            source=self.source[part] - atoms.start,
            target=self.target[part] - atoms.start,
            distance=self.distance[part],
            source_species=self.source_species[part],
            target_species=self.target_species[part],
            frames=self.frames[part],
            layout=self.layout,
            num_nodes=atoms.stop - atoms.start,
        )
