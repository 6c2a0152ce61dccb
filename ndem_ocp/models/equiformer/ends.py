"""Between nodes and the frames of edges: gather, turn and weigh; and the sums over the edges.

With ``Ends.by_node`` it is done by kernels, without by torch's functions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ndem_ocp.models.equiformer import kernels


class ByNode(NamedTuple):
    """Where the edges of each node are, for sums over them in a fixed order."""

    target_start: Tensor  # (N + 1,) of the edges as they are, sorted by target
    source_start: Tensor  # (N + 1,) in source_order
    source_order: Tensor  # (E,) edges sorted by source


class Ends(NamedTuple):
    """Edges by their ends and their frames."""

    source: Tensor  # (E,)
    target: Tensor  # (E,)
    frames: Tensor  # (E, R, K) Wigner matrices
    by_node: ByNode | None = None  # for kernels


def by_node(source: Tensor, target: Tensor, num_nodes: int) -> ByNode:
    """Of edges sorted by target."""
    nodes = torch.arange(num_nodes + 1, device=target.device)
    ordered, order = torch.sort(source, stable=True)
    return ByNode(torch.searchsorted(target, nodes), torch.searchsorted(ordered, nodes), order)


def weighed_messages(
    x: Tensor, radial: Tensor, piece: slice, where: Any, keep: bool = False
) -> tuple[Tensor, Tensor | None]:
    """r o D [x_source, x_target] of a piece of the edges, (n, R, 2C), and to ``keep`` what is
    weighed; a kernel needs no such thing."""
    ends = where[0]
    if ends.by_node is not None:
        from ndem_ocp.models.equiformer.kernels import turn

        return turn.weighed(x, radial, piece, where), None
    turned = _turn(x, ends, piece)
    weighed = turned.clone() if keep else turned
    _weigh(weighed, radial, where)
    return weighed, turned


def unweighed_messages(
    back: Tensor, turned: Tensor | None, x: Tensor, radial: Tensor, piece: slice, where: Any,
    d_x: Tensor | None,
) -> Tensor:  # fmt: skip
    """Gradient of the radial weights, (n, Q * 2C); that of the nodes is added to ``d_x``."""
    ends = where[0]
    if ends.by_node is None:
        d_radial = _weigh_back(back, turned, radial, where)
        if d_x is not None:
            _turn_back(back, ends, piece, d_x)
        return d_radial
    from ndem_ocp.models.equiformer.kernels import sums, turn

    d_radial, d_both = turn.unweighed(back, x, radial, piece, where)
    if d_x is not None:
        of, channels = ends.by_node, d_x.shape[2]
        sums.add_to_nodes(d_x, d_both, of.source_start, of.source_order, piece)
        sums.add_to_nodes(d_x, d_both, of.target_start, None, piece, offset=channels)
    return d_radial


def _turn(x: Tensor, ends: Ends, piece: slice) -> Tensor:
    """D [x_source, x_target] of a piece of the edges, (n, R, 2C)."""
    channels = x.shape[2]
    both = x.new_empty(piece.stop - piece.start, x.shape[1], 2 * channels)
    both[..., :channels] = x[ends.source[piece]]
    both[..., channels:] = x[ends.target[piece]]
    return torch.bmm(ends.frames[piece], both)


def _turn_back(back: Tensor, ends: Ends, piece: slice, d_x: Tensor) -> None:
    """Add D^T back to the ends of a piece of the edges."""
    inverse, channels = ends.frames[piece].transpose(1, 2), d_x.shape[2]
    # two products: what index_add_ adds must lie together, or it takes ten times as long
    d_x.index_add_(0, ends.source[piece], torch.bmm(inverse, back[..., :channels]))
    d_x.index_add_(0, ends.target[piece], torch.bmm(inverse, back[..., channels:]))


def _parts(turned: Tensor, radial: Tensor, where: Any) -> list[tuple[Tensor, Tensor]]:
    """Views of rows (n, rows, 2C) with the radial weights (n, rows, 2C) that belong to them."""
    _, layout, shared = where
    radial = radial.view(len(radial), -1, turned.shape[2])
    found = []
    for order, block, pairs in zip(layout.orders, layout.blocks, shared):
        rows = turned[:, block]
        halves = (rows,) if order == 0 else rows.chunk(2, dim=1)
        found += [(half, radial[:, pairs]) for half in halves]
    return found


def _weigh(turned: Tensor, radial: Tensor, where: Any) -> None:
    """turned := r o turned."""
    for rows, weights in _parts(turned, radial, where):
        rows *= weights


def _weigh_back(back: Tensor, turned: Tensor, radial: Tensor, where: Any) -> Tensor:
    """Gradient of the radial weights, (n, Q * 2C); back := r o back."""
    d_radial = torch.zeros_like(radial)
    parts = zip(_parts(back, radial, where), _parts(turned, d_radial, where))
    for (rows, weights), (before, d_weights) in parts:
        d_weights.addcmul_(rows, before)
        rows *= weights
    return d_radial


def add_to_targets(out: Tensor, back: Tensor, ends: Ends, piece: slice) -> None:
    if ends.by_node is None:
        out.index_add_(0, ends.target[piece], back)
        return
    from ndem_ocp.models.equiformer.kernels import sums

    sums.add_to_nodes(out, back, ends.by_node.target_start, None, piece)


def sums_kernel_agrees(like: Tensor, of: ByNode | None) -> bool:
    """Whether the kernel gives torch's sums over the edges of each node."""
    if of is None:
        return False

    def compare() -> list[tuple[Tensor, Tensor]]:
        from ndem_ocp.models.equiformer.kernels import sums

        values = kernels.wave((30, 5, 8), like)
        target = torch.arange(30, device=like.device) // 7
        found, expected = values.new_zeros(6, 5, 8), values.new_zeros(6, 5, 8)
        start = torch.searchsorted(target, torch.arange(7, device=like.device))
        sums.add_to_nodes(found, values, start, None, slice(0, 30))
        return [(found, expected.index_add_(0, target, values))]

    return kernels.agrees("sums over edges", like, (), compare)
