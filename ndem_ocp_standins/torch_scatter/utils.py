"""Shape helper shared by the scatter and segment functions."""

from __future__ import annotations

import torch


def broadcast(src: torch.Tensor, other: torch.Tensor, dim: int) -> torch.Tensor:
    """Expand an index to the shape of the tensor it indexes.

    Args:
        src: Index. A 1-D index of shape ``(E,)`` is laid along dimension
            ``dim`` of ``other``; an index with more dimensions is aligned with
            the leading dimensions of ``other``.
        other: Tensor of the wanted shape, with ``E`` entries along ``dim``.
        dim: Dimension of ``other``, negative counting from the end.

    Returns:
        A view of ``src`` with the shape of ``other``.
    """
    dim = dim + other.dim() if dim < 0 else dim
    if src.dim() == 1:
        src = src.reshape((1,) * dim + (-1,))
    trailing = (1,) * (other.dim() - src.dim())
    return src.reshape(tuple(src.shape) + trailing).expand(other.shape)
