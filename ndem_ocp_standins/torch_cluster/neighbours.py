"""Neighbours within a radius and nearest neighbours, by comparing all pairs.

Distances are taken within each graph of a batch, in blocks of bounded memory.
Results are the same on every run and device type, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ndem_ocp_standins._sentences import refuse

_PAIRS_AT_ONCE = 2**21

Pick = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def _points(x: torch.Tensor) -> torch.Tensor:
    x = x.detach().reshape(-1, 1) if x.dim() == 1 else x.detach()
    if x.dim() != 2:
        raise ValueError("points must have the shape (N, F) or (N,)")
    # Squared distances would overflow or round badly in half precision.
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _pointer(batch: torch.Tensor | None, points: int, graphs: int) -> list[int]:
    """Return where each graph starts, and the end, as ``graphs + 1`` numbers."""
    if batch is None:
        return [0] + [points] * graphs
    if batch.shape != (points,):
        raise ValueError("a batch vector must have one entry per point")
    if points > 1 and bool((batch.diff() < 0).any()):
        raise ValueError("a batch vector must be sorted")
    return [0, *torch.bincount(batch, minlength=graphs).cumsum(0).tolist()]


def _search(
    x: torch.Tensor,
    y: torch.Tensor,
    batch_x: torch.Tensor | None,
    batch_y: torch.Tensor | None,
    batch_size: int | None,
    skip_same: bool,
    pick: Pick,
) -> torch.Tensor:
    """Return pairs ``(2, E)`` of indices into ``y`` and ``x``, graph by graph.

    ``pick`` turns squared distances ``(M, N)``, infinite for pairs to leave
    out, into the rows and columns of the chosen pairs.
    """
    x, y = _points(x), _points(y)
    if x.size(1) != y.size(1):
        raise ValueError("the two sets of points must have the same dimension")
    graphs = batch_size or 1
    if batch_size is None:
        for batch in (batch_x, batch_y):
            if batch is not None and batch.numel() > 0:
                graphs = max(graphs, int(batch.max()) + 1)
    ptr_x = _pointer(batch_x, x.size(0), graphs)
    ptr_y = _pointer(batch_y, y.size(0), graphs)
    found = [torch.empty((2, 0), dtype=torch.int64, device=x.device)]
    for graph in range(graphs):
        start, end = ptr_x[graph], ptr_x[graph + 1]
        if end == start:
            continue
        block = max(_PAIRS_AT_ONCE // (end - start), 1)
        for low in range(ptr_y[graph], ptr_y[graph + 1], block):
            high = min(low + block, ptr_y[graph + 1])
            # Differences rather than a matrix product: exact near zero.
            distance = (y[low:high, None] - x[None, start:end]).square().sum(-1)
            if skip_same:
                same = torch.arange(low, high, device=x.device)[:, None]
                same = same == torch.arange(start, end, device=x.device)
                distance = distance.masked_fill(same, math.inf)
            rows, cols = pick(distance)
            found.append(torch.stack([rows + low, cols + start]))
    return torch.cat(found, dim=1)


def _directed(pairs: torch.Tensor, flow: str) -> torch.Tensor:
    if flow not in ("source_to_target", "target_to_source"):
        raise ValueError(f"flow must be source_to_target or target_to_source, not {flow!r}")
    return pairs.flip(0) if flow == "source_to_target" else pairs


def radius(
    x: torch.Tensor,
    y: torch.Tensor,
    r: float,
    batch_x: torch.Tensor | None = None,
    batch_y: torch.Tensor | None = None,
    max_num_neighbors: int | None = 32,
    num_workers: int = 1,
    batch_size: int | None = None,
    ignore_same_index: bool = False,
) -> torch.Tensor:
    """Find for each point of ``y`` the points of ``x`` nearer than ``r``.

    Args:
        x: Points, shape ``(N, F)``.
        y: Points, shape ``(M, F)``.
        r: Radius; a point at exactly this distance is left out.
        batch_x: Graph of each point of ``x``, sorted, shape ``(N,)``.
        batch_y: Graph of each point of ``y``, sorted, shape ``(M,)``.
        max_num_neighbors: Keep at most so many, the nearest ones (of equal
            distances the lower index); the real package keeps the first found.
            None keeps all.
        num_workers: Accepted and without effect.
        batch_size: Number of graphs.
        ignore_same_index: Leave out pairs of the same index.

    Returns:
        int64, shape ``(2, E)``: indices into ``y`` and into ``x``, sorted.
    """
    limit = float(r) * float(r)

    def pick(distance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        near = distance < limit
        if max_num_neighbors is not None and bool((near.sum(1) > max_num_neighbors).any()):
            order = distance.argsort(dim=1, stable=True)[:, :max_num_neighbors]
            near &= torch.zeros_like(near).scatter_(1, order, True)
        rows, cols = near.nonzero(as_tuple=True)
        return rows, cols

    return _search(x, y, batch_x, batch_y, batch_size, ignore_same_index, pick)


def radius_graph(
    x: torch.Tensor,
    r: float,
    batch: torch.Tensor | None = None,
    loop: bool = False,
    max_num_neighbors: int | None = 32,
    flow: str = "source_to_target",
    num_workers: int = 1,
    batch_size: int | None = None,
) -> torch.Tensor:
    """Connect each point to the points of its graph nearer than ``r``.

    Arguments as in :func:`radius`; ``loop`` keeps the edge of a point with
    itself, which then counts as one of its neighbours.

    Returns:
        Edges, int64, shape ``(2, E)``, sorted by centre and then by neighbour.
        With ``flow="source_to_target"`` the neighbour comes first.
    """
    pairs = radius(x, x, r, batch, batch, max_num_neighbors, num_workers, batch_size, not loop)
    return _directed(pairs, flow)


def _nearest(k: int, skip_same: bool) -> Pick:
    def pick(distance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = min(k, distance.size(1) - int(skip_same))
        cols = distance.argsort(dim=1, stable=True)[:, :wanted]
        rows = torch.arange(distance.size(0), device=distance.device)
        return rows.repeat_interleave(cols.size(1)), cols.reshape(-1)

    return pick


def knn(
    x: torch.Tensor,
    y: torch.Tensor,
    k: int,
    batch_x: torch.Tensor | None = None,
    batch_y: torch.Tensor | None = None,
    cosine: bool = False,
    num_workers: int = 1,
    batch_size: int | None = None,
) -> torch.Tensor:
    """Find for each point of ``y`` the ``k`` nearest points of ``x``.

    Arguments (``batch_size`` too) as in :func:`radius`; ``cosine=True`` is not
    covered.

    Returns:
        int64, shape ``(2, E)``: indices into ``y``, sorted, and into ``x``,
        the nearest first.
    """
    if cosine:
        refuse("torch_cluster", "knn with cosine=True")
    return _search(x, y, batch_x, batch_y, batch_size, False, _nearest(k, False))


def knn_graph(
    x: torch.Tensor,
    k: int,
    batch: torch.Tensor | None = None,
    loop: bool = False,
    flow: str = "source_to_target",
    cosine: bool = False,
    num_workers: int = 1,
    batch_size: int | None = None,
) -> torch.Tensor:
    """Connect each point to its ``k`` nearest points, arguments as in :func:`knn`.

    Returns:
        Edges, int64, shape ``(2, E)``, sorted by centre, the nearest first.
        With ``flow="source_to_target"`` the neighbour comes first.
    """
    if cosine:
        refuse("torch_cluster", "knn_graph with cosine=True")
    pairs = _search(x, x, batch, batch, batch_size, not loop, _nearest(k, not loop))
    return _directed(pairs, flow)
