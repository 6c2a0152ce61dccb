"""Reductions of a tensor into groups given by an index."""

from __future__ import annotations

import torch

from ndem_ocp_standins._sentences import refuse

from .utils import broadcast


def _wrap_dim(dim: int, src: torch.Tensor) -> int:
    if not -src.dim() <= dim < src.dim():
        raise IndexError(f"dim {dim} is out of range for a tensor with {src.dim()} dimensions")
    return dim % src.dim()


def _result_shape(
    src: torch.Tensor, index: torch.Tensor, dim: int, dim_size: int | None
) -> list[int]:
    shape = list(src.shape)
    if dim_size is None:
        dim_size = int(index.max()) + 1 if index.numel() > 0 else 0
    shape[dim] = int(dim_size)
    return shape


def scatter_sum(
    src: torch.Tensor,
    index: torch.Tensor,
    dim: int = -1,
    out: torch.Tensor | None = None,
    dim_size: int | None = None,
) -> torch.Tensor:
    """Sum the entries of ``src`` that share an index; empty groups give 0.

    Args:
        src: Values, with ``E`` entries along ``dim``.
        index: Group of each entry, int64, shape ``(E,)`` or broadcastable to
            ``src``, in any order.
        dim: Dimension to reduce.
        out: Tensor to add to in place, otherwise zeros.
        dim_size: Number of groups, otherwise ``index.max() + 1``.

    Returns:
        Tensor of the shape of ``src`` with ``dim_size`` entries along ``dim``.
    """
    dim = _wrap_dim(dim, src)
    full_index = broadcast(index, src, dim)
    if out is None:
        out = src.new_zeros(_result_shape(src, index, dim, dim_size))
    return out.scatter_add_(dim, full_index, src)


def scatter_add(
    src: torch.Tensor,
    index: torch.Tensor,
    dim: int = -1,
    out: torch.Tensor | None = None,
    dim_size: int | None = None,
) -> torch.Tensor:
    """Another name of :func:`scatter_sum`."""
    return scatter_sum(src, index, dim, out, dim_size)


def scatter_mean(
    src: torch.Tensor,
    index: torch.Tensor,
    dim: int = -1,
    out: torch.Tensor | None = None,
    dim_size: int | None = None,
) -> torch.Tensor:
    """Average the entries of ``src`` that share an index; empty groups give 0.

    Shapes as in :func:`scatter_sum`; integers are divided rounding down.
    ``out`` is not covered.
    """
    if out is not None:
        refuse("torch_scatter", "the argument `out` of a mean")
    dim = _wrap_dim(dim, src)
    total = scatter_sum(src, index, dim, None, dim_size)
    # Counted as integers: a count in half precision would stop at 2048.
    if index.dim() == 1:
        count = index.new_zeros(total.size(dim)).scatter_add_(0, index, torch.ones_like(index))
        count = broadcast(count, total, dim)
    else:
        full_index = broadcast(index, src, dim)
        count = index.new_zeros(total.shape)
        count.scatter_add_(dim, full_index, torch.ones_like(full_index))
    count = count.clamp(min=1).to(total.dtype)
    if total.is_floating_point() or total.is_complex():
        return total / count
    return total.div(count, rounding_mode="floor")


def scatter_mul(
    src: torch.Tensor,
    index: torch.Tensor,
    dim: int = -1,
    out: torch.Tensor | None = None,
    dim_size: int | None = None,
) -> torch.Tensor:
    """Multiply the entries of ``src`` that share an index.

    Shapes as in :func:`scatter_sum`. As in the real package an empty group
    gives 1, the empty product. ``out`` is multiplied into in place.
    """
    dim = _wrap_dim(dim, src)
    full_index = broadcast(index, src, dim)
    if out is None:
        out = src.new_ones(_result_shape(src, index, dim, dim_size))
    return out.scatter_reduce_(dim, full_index, src, reduce="prod", include_self=True)


def _extreme(
    src: torch.Tensor,
    index: torch.Tensor,
    dim: int,
    out: torch.Tensor | None,
    dim_size: int | None,
    reduce: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    if out is not None:
        refuse("torch_scatter", "the argument `out` of a minimum or maximum")
    dim = _wrap_dim(dim, src)
    shape = _result_shape(src, index, dim, dim_size)
    length = src.size(dim)
    full_index = broadcast(index, src, dim)
    no_entry = full_index.new_full(shape, length)
    if length == 0:
        # A sum of nothing rather than bare zeros keeps the link to `src`.
        return scatter_sum(src, index, dim, None, shape[dim]), no_entry
    with torch.no_grad():
        best = src.new_zeros(shape).scatter_reduce_(
            dim, full_index, src, reduce=reduce, include_self=False
        )
        winner = best.gather(dim, full_index)
        # NaN wins every comparison, so that it is not lost from the result.
        wins = (src == winner) | (src.isnan() & winner.isnan())
        position = torch.arange(length, device=src.device)
        position = broadcast(position, src, dim).masked_fill(~wins, length)
        # The first of equal entries wins, whatever the order of execution.
        arg = no_entry.scatter_reduce_(dim, full_index, position, reduce="amin")
        empty = arg == length
    # Values are read through the position, which sends the whole gradient to
    # one entry of each group, as the real package does.
    values = src.gather(dim, arg.masked_fill(empty, 0)).masked_fill(empty, 0)
    return values, arg


def scatter_min(
    src: torch.Tensor,
    index: torch.Tensor,
    dim: int = -1,
    out: torch.Tensor | None = None,
    dim_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the smallest entry of each group and its position along ``dim``.

    Shapes as in :func:`scatter_sum`, for both results. An empty group gives
    the value 0 and the position ``src.size(dim)``; the first of equal entries
    is taken. ``out`` is not covered.
    """
    return _extreme(src, index, dim, out, dim_size, "amin")


def scatter_max(
    src: torch.Tensor,
    index: torch.Tensor,
    dim: int = -1,
    out: torch.Tensor | None = None,
    dim_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest entry of each group and its position along ``dim``.

    See :func:`scatter_min`.
    """
    return _extreme(src, index, dim, out, dim_size, "amax")


def scatter(
    src: torch.Tensor,
    index: torch.Tensor,
    dim: int = -1,
    out: torch.Tensor | None = None,
    dim_size: int | None = None,
    reduce: str = "sum",
) -> torch.Tensor:
    """Reduce the entries of ``src`` that share an index.

    Args:
        src: Values, with ``E`` entries along ``dim``.
        index: Group of each entry, int64, shape ``(E,)`` or broadcastable to
            ``src``, in any order.
        dim: Dimension to reduce.
        out: Tensor to reduce into in place ("sum", "add" and "mul" only).
        dim_size: Number of groups, otherwise ``index.max() + 1``.
        reduce: "sum", "add", "mean", "min", "max" or "mul".

    Returns:
        Tensor of the shape of ``src`` with ``dim_size`` entries along ``dim``.
    """
    if reduce in ("sum", "add"):
        return scatter_sum(src, index, dim, out, dim_size)
    if reduce == "mean":
        return scatter_mean(src, index, dim, out, dim_size)
    if reduce == "mul":
        return scatter_mul(src, index, dim, out, dim_size)
    if reduce == "min":
        return scatter_min(src, index, dim, out, dim_size)[0]
    if reduce == "max":
        return scatter_max(src, index, dim, out, dim_size)[0]
    raise ValueError(f"reduce must be sum, add, mean, min, max or mul, not {reduce!r}")
