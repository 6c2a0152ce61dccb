"""Edge frames: the Wigner matrices that rotate node coefficients into the frame of an edge."""

from __future__ import annotations

import torch
from e3nn import o3
from fairchem.core.models.equiformer_v2.edge_rot_mat import init_edge_rot_mat
from fairchem.core.models.equiformer_v2.wigner import _Jd
from torch import Tensor

from ndem_ocp.models.equiformer.constants import index, swap_axes
from ndem_ocp.models.equiformer.layout import Layout


@torch.no_grad()
def edge_frames(distance_vec: Tensor, layout: Layout) -> Tensor:
    """D, (E, R, K): D x are the coefficients of x in the frame of each edge, ordered as in Layout.

    The y axis of the frame is the edge. The rotation about it is random and drawn by upstream's
    function, so that the same seed gives upstream's frames. As upstream, without gradient.

    Args:
        distance_vec: (E, 3) source minus target, Angstrom.
    """
    with torch.autocast(distance_vec.device.type, enabled=False):  # angles need full precision
        return _frames(init_edge_rot_mat(distance_vec), layout)


def _frames(rotation: Tensor, layout: Layout) -> Tensor:
    alpha, beta, gamma = _angles(rotation)
    frames = rotation.new_zeros(len(rotation), len(layout.rows), (layout.lmax + 1) ** 2)
    for degree in range(layout.lmax + 1):
        rows = [n for n, (of, _) in enumerate(layout.rows) if of == degree]
        orders = [layout.rows[n][1] for n in rows]
        block = wigner_rows(degree, orders, alpha, beta, gamma)
        first = degree**2
        frames[:, index(rows, frames), first : first + 2 * degree + 1] = block
    return frames


def _angles(rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Euler angles (y, x, y) of (E, 3, 3) rotations."""
    alpha, beta = o3.xyz_to_angles(rotation[..., 1])
    left = o3.angles_to_matrix(alpha, beta, torch.zeros_like(alpha)).transpose(-1, -2) @ rotation
    return alpha, beta, torch.atan2(left[..., 0, 2], left[..., 0, 0])


def wigner_rows(
    degree: int, orders: list[int], alpha: Tensor, beta: Tensor, gamma: Tensor
) -> Tensor:
    """Rows of the real Wigner matrix D^l = Z(alpha) J Z(beta) J Z(gamma).

    Z(t) is cos(f t) on the diagonal and sin(f t) on the antidiagonal, f = l ... -l; a product
    with it is a sum of two scaled terms. J is a constant (e3nn).

    Args:
        degree: l.
        orders: m of the rows to compute.
        alpha, beta, gamma: (E,) radian.

    Returns:
        (E, len(orders), 2 l + 1)
    """
    if degree >= len(_Jd):
        raise ValueError(
            f"lmax = {degree}: Wigner matrices are only available up to {len(_Jd) - 1}."
        )
    swap = swap_axes(degree, alpha.dtype, alpha.device)
    frequency = torch.arange(degree, -degree - 1, -1, dtype=alpha.dtype, device=alpha.device)

    def waves(angle: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cos(angle[:, None] * frequency), torch.sin(angle[:, None] * frequency)

    chosen = index([order + degree for order in orders], alpha)
    cos, sin = waves(alpha)
    rows = cos[:, chosen, None] * swap[chosen] + sin[:, chosen, None] * swap.flip(0)[chosen]
    rows = _times_z(rows, *waves(beta)) @ swap
    return _times_z(rows, *waves(gamma))


def _times_z(rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(E, r, n) rows times Z of (E, n) waves."""
    return rows * cos[:, None] + rows.flip(-1) * sin.flip(-1)[:, None]
