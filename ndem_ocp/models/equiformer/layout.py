"""How spherical-harmonic coefficients are ordered on edges.

On nodes, the K = (L + 1)^2 coefficients (l, m) are sorted by degree: l = 0 ... L, m = -l ... l. In
the frame of an edge only the R coefficients with |m| <= M are kept. They are sorted by order, which
the SO(2) convolutions need: all (l, 0), then for m = 1 ... M all (l, +m) followed by all (l, -m).

Upstream sorts coefficients on edges by degree and reorders them with dense matrices before and
after each convolution. Here the rows of the Wigner and grid matrices are already sorted by order,
so that nothing has to be reordered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property


@dataclass(frozen=True)
class Layout:
    """Coefficients on nodes and edges up to degree ``lmax`` (L) and order ``mmax`` (M).

    Args:
        lmax: L.
        mmax: M, at most L.
        degrees: the degrees to keep on edges, (first, last + 1); all by default.
    """

    lmax: int
    mmax: int
    degrees: tuple[int, int] | None = None

    @property
    def kept(self) -> tuple[int, int]:
        """The kept degrees, (first, last + 1)."""
        return self.degrees or (0, self.lmax + 1)

    def of_order(self, order: int) -> list[int]:
        """The kept degrees with l >= |m|."""
        first, end = self.kept
        return list(range(max(first, order), end))

    @cached_property
    def orders(self) -> list[int]:
        """m = 0 ... M, as far as a kept degree has them."""
        return [m for m in range(self.mmax + 1) if self.of_order(m)]

    @cached_property
    def rows(self) -> list[tuple[int, int]]:
        """(l, m) of the R edge coefficients."""
        signed = [m for order in self.orders for m in dict.fromkeys((order, -order))]
        return [(degree, m) for m in signed for degree in self.of_order(abs(m))]

    @cached_property
    def blocks(self) -> list[slice]:
        """For each order its rows, (l, +m) before (l, -m)."""
        found, start = [], 0
        for order in self.orders:
            stop = start + len(self.of_order(order)) * (1 if order == 0 else 2)
            found.append(slice(start, stop))
            start = stop
        return found

    @cached_property
    def node_rows(self) -> slice:
        """Rows of the kept degrees among the K coefficients of a node."""
        first, end = self.kept
        return slice(first**2, end**2)

    def rows_within(self, whole: Layout) -> list[int]:
        """For each row, its index in a layout with more degrees."""
        place = {row: number for number, row in enumerate(whole.rows)}
        return [place[row] for row in self.rows]

    @cached_property
    def by_degree(self) -> list[int]:
        """For each row, its index in upstream's order: by degree, then m = -M ... M."""
        order = sorted(self.rows)
        place = {row: number for number, row in enumerate(order)}
        return [place[row] for row in self.rows]

    @cached_property
    def rescale(self) -> list[float]:
        """Factor of each of the K' kept coefficients after rotation back to the nodes.

        sqrt((2l + 1) / (2M + 1)) for l > M, which compensates for the omitted orders.
        """
        first, end = self.kept
        return [
            math.sqrt(max(1.0, (2 * degree + 1) / (2 * self.mmax + 1)))
            for degree in range(first, end)
            for _ in range(2 * degree + 1)
        ]


@cache
def layout(lmax: int, mmax: int, degrees: tuple[int, int] | None = None) -> Layout:
    """The Layout of these sizes (cached)."""
    return Layout(lmax, mmax, degrees)
