"""What all layers know of the edges, made once per forward."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ndem_ocp.models.equiformer.convolution import Ends
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
    _ends: dict[object, Ends] = field(default_factory=dict)

    def ends(self, dtype: torch.dtype, layout: Layout | None = None) -> Ends:
        """Ends with frames of a type, for a layout that keeps a part of the degrees; kept."""
        layout = layout or self.layout
        key = (dtype, layout)
        if key not in self._ends:
            frames = self.frames
            if layout is not self.layout:
                rows = torch.tensor(layout.rows_within(self.layout), device=frames.device)
                frames = frames[:, rows, layout.node_rows].contiguous()
            self._ends[key] = Ends(self.source, self.target, frames.to(dtype))
        return self._ends[key]

    def between(self, atoms: slice) -> Edges:
        """The edges among a run of atoms that has edges with no others, its first atom as 0."""
        first, end = torch.searchsorted(
            self.target, self.target.new_tensor([atoms.start, atoms.stop])
        ).tolist()
        part = slice(first, end)
        return Edges(
            source=self.source[part] - atoms.start,
            target=self.target[part] - atoms.start,
            distance=self.distance[part],
            source_species=self.source_species[part],
            target_species=self.target_species[part],
            frames=self.frames[part],
            layout=self.layout,
        )
