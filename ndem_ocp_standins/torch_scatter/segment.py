"""Reductions of consecutive entries, and their inverse, repetition."""

from __future__ import annotations

import torch

from ndem_ocp_standins._sentences import refuse

from .scatter import scatter

_REDUCTIONS = ("sum", "add", "mean", "min", "max")


def _check(out: torch.Tensor | None, reduce: str = "sum") -> None:
    if out is not None:
        refuse("torch_scatter", "the argument `out` of a segment or gather function")
    if reduce not in _REDUCTIONS:
        raise ValueError(f"reduce must be one of {', '.join(_REDUCTIONS)}, not {reduce!r}")


def _align(index: torch.Tensor, src: torch.Tensor) -> torch.Tensor:
    """Give an index the leading sizes of ``src``, keeping its own last size."""
    if index.dim() > src.dim():
        raise ValueError("the index has more dimensions than the source")
    return index.expand((*src.shape[: index.dim() - 1], index.size(-1)))


def _segment_of(indptr: torch.Tensor, length: int) -> torch.Tensor:
    """Return the segment of each of ``length`` positions, shape ``(..., length)``.

    Positions before the first or after the last boundary get the number of
    segments, one more than the last segment.
    """
    segments = max(indptr.size(-1) - 1, 0)
    position = torch.arange(length, device=indptr.device, dtype=indptr.dtype)
    position = position.expand((*indptr.shape[:-1], length)).contiguous()
    # Among equal boundaries (empty segments) the last one holds the position.
    segment = torch.searchsorted(indptr.contiguous(), position, right=True) - 1
    return torch.where(segment < 0, segments, segment)


def segment_coo(
    src: torch.Tensor,
    index: torch.Tensor,
    out: torch.Tensor | None = None,
    dim_size: int | None = None,
    reduce: str = "sum",
) -> torch.Tensor:
    """Reduce the entries of ``src`` that share a sorted index.

    Args:
        src: Values, shape ``(..., E, *)``.
        index: Group of each entry, int64, shape ``(..., E)``; the real package
            needs it sorted, here any order is right. Its last dimension is
            the one reduced, its leading ones are broadcast.
        out: Not covered.
        dim_size: Number of groups, otherwise ``index.max() + 1``.
        reduce: "sum", "add", "mean", "min" or "max"; empty groups give 0.

    Returns:
        Tensor of shape ``(..., dim_size, *)``.
    """
    _check(out, reduce)
    return scatter(src, _align(index, src), index.dim() - 1, None, dim_size, reduce)


def segment_csr(
    src: torch.Tensor,
    indptr: torch.Tensor,
    out: torch.Tensor | None = None,
    reduce: str = "sum",
) -> torch.Tensor:
    """Reduce the ranges of ``src`` between consecutive boundaries.

    Args:
        src: Values, shape ``(..., E, *)``.
        indptr: Boundaries, not decreasing, shape ``(..., S + 1)``; its last
            dimension is the one reduced, its leading ones are broadcast.
            Entries outside of all ranges are left out.
        out: Not covered.
        reduce: "sum", "add", "mean", "min" or "max"; empty ranges give 0.

    Returns:
        Tensor of shape ``(..., S, *)``.
    """
    _check(out, reduce)
    dim = indptr.dim() - 1
    segments = max(indptr.size(-1) - 1, 0)
    if indptr.numel() == indptr.size(-1):
        # One set of boundaries for all: a 1-D index is cheaper to broadcast.
        index = _segment_of(indptr.reshape(-1), src.size(dim))
    else:
        index = _segment_of(_align(indptr, src), src.size(dim))
    # One group more takes the entries outside of all ranges and is cut off.
    return scatter(src, index, dim, None, segments + 1, reduce).narrow(dim, 0, segments)


def gather_coo(
    src: torch.Tensor, index: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Repeat the entries of ``src`` by index, the inverse of ``segment_coo``.

    Args:
        src: Values, shape ``(..., S, *)``.
        index: Entry to take, int64, shape ``(..., E)``.
        out: Not covered.

    Returns:
        Tensor of shape ``(..., E, *)``.
    """
    _check(out)
    if index.dim() == 1:
        return src.index_select(0, index)
    index = _align(index, src)
    dim = index.dim() - 1
    trailing = tuple(src.shape[dim + 1 :])
    index = index.reshape(tuple(index.shape) + (1,) * len(trailing))
    return src.gather(dim, index.expand(tuple(index.shape[: dim + 1]) + trailing))


def gather_csr(
    src: torch.Tensor, indptr: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Repeat the entries of ``src`` by range, the inverse of ``segment_csr``.

    Args:
        src: Values, shape ``(..., S, *)``.
        indptr: Boundaries starting at 0, not decreasing, shape
            ``(..., S + 1)`` with the same last boundary ``E`` everywhere.
        out: Not covered.

    Returns:
        Tensor of shape ``(..., E, *)``.
    """
    _check(out)
    length = int(indptr.reshape(-1)[-1]) if indptr.numel() > 0 else 0
    return gather_coo(src, _segment_of(indptr, length))
