"""Data of the edges that all layers share, computed once per forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ndem_ocp.models.equiformer import kernels
from ndem_ocp.models.equiformer.constants import index
from ndem_ocp.models.equiformer.layout import Layout
from ndem_ocp.models.equiformer.messages import ByNode, Ends, by_node


@dataclass
class Edges:
    """Edges of a batch, sorted by target, with all quantities that are the same in every layer.

    They are an argument of every layer and never an attribute of a module, so that two forwards
    before a backward, or activation checkpointing, cannot use the wrong ones.
    """

    source: Tensor  # (E,)
    target: Tensor  # (E,)
    # (E, G) distances in a radial basis; with species if layers share their embedding
    distance: Tensor
    source_species: Tensor  # (E,)
    target_species: Tensor  # (E,)
    frames: Tensor  # (E, R, K) Wigner matrices, rows ordered as in layout
    layout: Layout
    num_nodes: int
    # hidden features of radial functions, (E, h), by function, if computed ahead
    radial: dict[nn.Module, Tensor] = field(default_factory=dict)
    _made: dict[object, Any] = field(default_factory=dict)

    def once(self, key: object, make: Callable[[], Any]) -> Any:
        """The result of ``make()``, cached under a key, so that layers share their constants."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def ends(self, dtype: torch.dtype, layout: Layout | None = None) -> Ends:
        """Atoms and frames of the edges in a dtype; a layout may keep fewer degrees. Cached."""
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
        """Number of edges whose target comes before this atom.

        The first call for an atom waits for the device: call it early in the forward.
        """
        if atom <= 0 or atom >= self.num_nodes:
            return 0 if atom <= 0 else len(self.target)
        return self.once(("first edge", atom), lambda: int((self.target < atom).sum()))

    def between(self, atoms: slice) -> Edges:
        """The edges of a range of atoms without edges to other atoms, numbered from 0."""
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
