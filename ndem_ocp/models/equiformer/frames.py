"""Edge frames: the Wigner matrices that rotate node coefficients into the frame of an edge."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from e3nn import o3
from fairchem.core.models.equiformer_v2.edge_rot_mat import init_edge_rot_mat
from fairchem.core.models.equiformer_v2.wigner import _Jd
from torch import Tensor

from ndem_ocp.models.equiformer.constants import kept
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
    """The real Wigner matrices D^l = Z(alpha) J Z(beta) J Z(gamma) of all degrees at once.

    Z(t) is cos(f t) on the diagonal and sin(f t) on the antidiagonal, f = l ... -l; a product
    with it is a sum of two scaled terms. J is a constant (e3nn).
    """
    alpha, beta, gamma = _angles(rotation)
    entries = _entries(layout, rotation.dtype, rotation.device)
    cos, sin = entries.waves(alpha, entries.row_wave, entries.row_wave)
    found = cos * entries.swap + sin * entries.swap_mirrored
    found = entries.times_z(found, beta) @ entries.swap_all
    found = entries.times_z(found, gamma)
    shape = len(layout.rows), (layout.lmax + 1) ** 2
    frames = found.new_zeros(len(found), shape[0] * shape[1])
    return frames.index_copy_(1, entries.place, found).view(-1, *shape)


def _angles(rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Euler angles (y, x, y) of (E, 3, 3) rotations."""
    alpha, beta = o3.xyz_to_angles(rotation[..., 1])
    # first row of the rotation by -alpha about y, which one about x leaves as it is
    row = alpha.cos()[:, None] * rotation[:, 0] - alpha.sin()[:, None] * rotation[:, 2]
    return alpha, beta, torch.atan2(row[:, 2], row[:, 0])


@dataclass(frozen=True)
class _Entries:
    """The P entries of (R, K) that are not zero: those of a row and a column of one degree.

    Doing the same to all degrees in a few operations matters on a GPU, where each operation costs
    several microseconds of the host's time.
    """

    frequency: Tensor  # (2L + 1,) L ... -L
    # each (P,): indices of frequencies, and of the entry in the mirrored column
    row_wave: Tensor
    column_wave: Tensor
    mirrored_wave: Tensor
    mirror: Tensor
    place: Tensor  # (P,) in R * K
    swap: Tensor  # (P,) J at the entry, and in the mirrored row
    swap_mirrored: Tensor
    swap_all: Tensor  # (P, P) J for the entries of each row

    def waves(self, angle: Tensor, of_cos: Tensor, of_sin: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of (E,) angles times the chosen frequencies, (E, P)."""
        turned = angle[:, None] * self.frequency
        return turned.cos().index_select(1, of_cos), turned.sin().index_select(1, of_sin)

    def times_z(self, entries: Tensor, angle: Tensor) -> Tensor:
        """(E, P) rows times Z of (E,) angles."""
        cos, sin = self.waves(angle, self.column_wave, self.mirrored_wave)
        return torch.addcmul(entries * cos, entries.index_select(1, self.mirror), sin)


@kept
def _entries(layout: Layout, dtype: torch.dtype, device: torch.device) -> _Entries:
    lmax = layout.lmax
    if lmax >= len(_Jd):
        raise ValueError(f"lmax = {lmax}: Wigner matrices are only available up to {len(_Jd) - 1}.")
    found: dict[str, list[float]] = defaultdict(list)
    blocks = []
    for number, (degree, m) in enumerate(layout.rows):
        axes = _Jd[degree]
        first, row = len(found["place"]), m + degree
        for column in range(2 * degree + 1):
            order = column - degree
            found["row_wave"].append(lmax + m)  # of frequency -m
            found["column_wave"].append(lmax + order)
            found["mirrored_wave"].append(lmax - order)
            found["mirror"].append(first + 2 * degree - column)
            found["place"].append(number * (lmax + 1) ** 2 + degree**2 + column)
            found["swap"].append(float(axes[row, column]))
            found["swap_mirrored"].append(float(axes[2 * degree - row, column]))
        blocks.append(axes)
    with torch.inference_mode(False):
        made = {
            name: torch.tensor(
                values, dtype=dtype if name.startswith("swap") else torch.long, device=device
            )
            for name, values in found.items()
        }
        return _Entries(
            frequency=torch.arange(lmax, -lmax - 1, -1, dtype=dtype, device=device),
            swap_all=torch.block_diag(*blocks).to(device=device, dtype=dtype),
            **made,
        )
