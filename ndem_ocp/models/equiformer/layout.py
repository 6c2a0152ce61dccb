"""The order of spherical-harmonic coefficients on edges, and where its parts lie.

On nodes the coefficients (l, m) lie by degree: l = 0 ... L, m = -l ... l, K = (L + 1)^2 of them. In
the frame of an edge only orders |m| <= M are kept, and lie by order, which is what the SO(2)
convolutions multiply: all (l, 0), then for m = 1 ... M all (l, +m) and all (l, -m); R of them.

Upstream computes on edges by degree and reorders with dense matrices before and after each
convolution; here the Wigner matrices and the grid matrices have their rows in this order, so that
nothing is ever reordered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property


@dataclass(frozen=True)
class Layout:
    """Coefficients on nodes and edges for degree ``lmax`` (L) and order ``mmax`` (M).

    Args:
        lmax: L.
        mmax: M, at most L.
        degrees: the degrees that are kept on edges, (first, last + 1); all of them by default.
    """

    lmax: int
    mmax: int
    degrees: tuple[int, int] | None = None

    def of_order(self, order: int) -> list[int]:
        """Degrees l with l >= |m|, of those that are kept."""
        first, end = self.degrees or (0, self.lmax + 1)
        return list(range(max(first, order), end))

    @cached_property
    def orders(self) -> list[int]:
        """m = 0 ... M, of those that some degree has."""
        return [m for m in range(self.mmax + 1) if self.of_order(m)]

    @cached_property
    def rows(self) -> list[tuple[int, int]]:
        """(l, m) of the R edge coefficients."""
        signed = [m for order in self.orders for m in dict.fromkeys((order, -order))]
        return [(degree, m) for m in signed for degree in self.of_order(abs(m))]

    @cached_property
    def blocks(self) -> list[slice]:
        """For each order its rows, (l, m) before (l, -m)."""
        found, start = [], 0
        for order in self.orders:
            stop = start + len(self.of_order(order)) * (1 if order == 0 else 2)
            found.append(slice(start, stop))
            start = stop
        return found

    @cached_property
    def node_rows(self) -> slice:
        """Rows of the kept degrees among the K coefficients of a node."""
        first, end = self.degrees or (0, self.lmax + 1)
        return slice(first**2, end**2)

    def rows_within(self, whole: Layout) -> list[int]:
        """For each row, its place among the rows of a layout that keeps more degrees."""
        place = {row: number for number, row in enumerate(whole.rows)}
        return [place[row] for row in self.rows]

    @cached_property
    def by_degree(self) -> list[int]:
        """For each row, its place in upstream's order: by degree, then m = -M ... M."""
        order = sorted(self.rows)
        place = {row: number for number, row in enumerate(order)}
        return [place[row] for row in self.rows]

    @cached_property
    def rescale(self) -> list[float]:
        """Factor of each row on the way back to the nodes, sqrt((2l + 1) / (2M + 1)) for l > M: it
        makes up for the orders that were left out."""
        return [
            math.sqrt((2 * degree + 1) / (2 * self.mmax + 1)) if degree > self.mmax else 1.0
            for degree, _ in self.rows
        ]


@cache
def layout(lmax: int, mmax: int, degrees: tuple[int, int] | None = None) -> Layout:
    """The one Layout of these sizes."""
    return Layout(lmax, mmax, degrees)
