"""Messages: gather node features, rotate them into edge frames, weight them, sum over the edges.

With ``Ends.by_node`` Triton kernels do this, without it torch's functions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ndem_ocp.models.equiformer import kernels


class ByNode(NamedTuple):
    """The edges of each node, for sums over them in a fixed order: (start, order) by either end.

    order: (E,) edges sorted by node; start: (N + 1,) the first place of each node in it.
    """

    target: tuple[Tensor, Tensor]
    source: tuple[Tensor, Tensor]


class Ends(NamedTuple):
    """The two atoms of each edge, and its frame."""

    source: Tensor  # (E,)
    target: Tensor  # (E,)
    frames: Tensor  # (E, R, K) Wigner matrices
    by_node: ByNode | None = None  # only if kernels are used


def by_node(source: Tensor, target: Tensor, num_nodes: int) -> ByNode:
    """For edges in any order: those that a data set brings need not be sorted by target."""
    nodes = torch.arange(num_nodes + 1, device=target.device)

    def sort(ends: Tensor) -> tuple[Tensor, Tensor]:
        ordered, order = torch.sort(ends, stable=True)
        return torch.searchsorted(ordered, nodes), order

    return ByNode(sort(target), sort(source))


def weighted_messages(
    x: Tensor, radial: Tensor, chunk: slice, where: Any, keep: bool = False
) -> tuple[Tensor, Tensor | None]:
    """r o D [x_source, x_target] for a chunk of the edges, (n, R, 2C).

    ``where`` is (Ends, Layout, for each order the slice of its radial weights), here and below.

    Also returns the rotated features before weighting, which the gradient needs (with ``keep``);
    None if a kernel is used, which computes them again.
    """
    ends = where[0]
    if ends.by_node is not None:
        from ndem_ocp.models.equiformer.kernels import messages

        return messages.weighted(x, radial, chunk, where), None
    rotated = _rotate(x, ends, chunk)
    weighted = rotated.clone() if keep else rotated
    _apply_weights(weighted, radial, where)
    return weighted, rotated


def message_gradients(
    back: Tensor, rotated: Tensor | None, x: Tensor, radial: Tensor, chunk: slice, where: Any,
    d_x: Tensor | None,
) -> Tensor:  # fmt: skip
    """Gradient of the radial weights, (n, Q * 2C); that of the nodes is added to ``d_x``."""
    ends = where[0]
    if ends.by_node is None:
        d_radial = _apply_weights_backward(back, rotated, radial, where)
        if d_x is not None:
            _rotate_back(back, ends, chunk, d_x)
        return d_radial
    from ndem_ocp.models.equiformer.kernels import messages, sums

    d_radial, d_both = messages.gradients(back, x, radial, chunk, where)
    if d_x is not None:
        of, channels = ends.by_node, d_x.shape[2]
        sums.add_to_nodes(d_x, d_both, *of.source, chunk)
        sums.add_to_nodes(d_x, d_both, *of.target, chunk, offset=channels)
    return d_radial


def _rotate(x: Tensor, ends: Ends, chunk: slice) -> Tensor:
    """D [x_source, x_target] for a chunk of the edges, (n, R, 2C)."""
    channels = x.shape[2]
    both = x.new_empty(chunk.stop - chunk.start, x.shape[1], 2 * channels)
    both[..., :channels] = x[ends.source[chunk]]
    both[..., channels:] = x[ends.target[chunk]]
    return torch.bmm(ends.frames[chunk], both)


def _rotate_back(back: Tensor, ends: Ends, chunk: slice, d_x: Tensor) -> None:
    """Add D^T back to both atoms of each edge in a chunk."""
    inverse, channels = ends.frames[chunk].transpose(1, 2), d_x.shape[2]
    # two products, because index_add_ is ten times slower on memory that is not contiguous
    d_x.index_add_(0, ends.source[chunk], torch.bmm(inverse, back[..., :channels]))
    d_x.index_add_(0, ends.target[chunk], torch.bmm(inverse, back[..., channels:]))


def _parts(rotated: Tensor, radial: Tensor, where: Any) -> list[tuple[Tensor, Tensor]]:
    """Views of rows (n, rows, 2C), each with its radial weights (n, rows, 2C)."""
    _, layout, shared = where
    radial = radial.view(len(radial), -1, rotated.shape[2])
    found = []
    for order, block, pairs in zip(layout.orders, layout.blocks, shared):
        rows = rotated[:, block]
        halves = (rows,) if order == 0 else rows.chunk(2, dim=1)
        found += [(half, radial[:, pairs]) for half in halves]
    return found


def _apply_weights(rotated: Tensor, radial: Tensor, where: Any) -> None:
    """rotated := r o rotated, in place."""
    for rows, weights in _parts(rotated, radial, where):
        rows *= weights


def _apply_weights_backward(back: Tensor, rotated: Tensor, radial: Tensor, where: Any) -> Tensor:
    """Gradient of the radial weights, (n, Q * 2C); back := r o back, in place."""
    d_radial = torch.zeros_like(radial)
    parts = zip(_parts(back, radial, where), _parts(rotated, d_radial, where))
    for (rows, weights), (before, d_weights) in parts:
        d_weights.addcmul_(rows, before)
        rows *= weights
    return d_radial


def add_to_targets(out: Tensor, back: Tensor, ends: Ends, chunk: slice) -> None:
    if ends.by_node is None:
        out.index_add_(0, ends.target[chunk], back)
        return
    from ndem_ocp.models.equiformer.kernels import sums

    sums.add_to_nodes(out, back, *ends.by_node.target, chunk)


def sums_kernel_agrees(like: Tensor, of: ByNode | None) -> bool:
    """Whether the kernel agrees with torch on sums over the edges of each node."""
    if of is None:
        return False

    def compare() -> list[tuple[Tensor, Tensor]]:
        from ndem_ocp.models.equiformer.kernels import sums

        values = kernels.wave((30, 5, 8), like)
        target = torch.arange(30, device=like.device) // 7
        found, expected = values.new_zeros(6, 5, 8), values.new_zeros(6, 5, 8)
        sums.add_to_nodes(found, values, *by_node(target, target, 6).target, slice(0, 30))
        return [(found, expected.index_add_(0, target, values))]

    return kernels.agrees("sums over edges", like, (), compare)
