"""A sparse matrix in coordinate form, sorted by row and then by column."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from ndem_ocp_standins._sentences import NotCovered, not_covered, refuse


class Storage:
    """Indices and values of a :class:`SparseTensor` with ``nnz`` entries."""

    def __init__(
        self,
        row: torch.Tensor,
        col: torch.Tensor,
        value: torch.Tensor | None,
        sparse_sizes: tuple[int, int],
    ) -> None:
        self._row = row
        self._col = col
        self._value = value
        self._sparse_sizes = sparse_sizes

    def row(self) -> torch.Tensor:
        """Row of each entry, not decreasing, shape ``(nnz,)``."""
        return self._row

    def col(self) -> torch.Tensor:
        """Column of each entry, shape ``(nnz,)``."""
        return self._col

    def value(self) -> torch.Tensor | None:
        """Value of each entry, shape ``(nnz, *)``, or None."""
        return self._value

    def rowcount(self) -> torch.Tensor:
        """Number of entries of each row, shape ``(rows,)``."""
        return torch.bincount(self._row, minlength=self._sparse_sizes[0])

    def rowptr(self) -> torch.Tensor:
        """First entry of each row and the end, shape ``(rows + 1,)``."""
        return torch.nn.functional.pad(self.rowcount().cumsum(0), (1, 0))

    def sparse_sizes(self) -> tuple[int, int]:
        """Number of rows and of columns."""
        return self._sparse_sizes

    def __getattr__(self, name: str) -> NoReturn:
        _missing(f"SparseTensor.storage.{name}", name)


def _missing(what: str, name: str) -> NoReturn:
    if name.startswith("_"):
        raise AttributeError(name)
    raise NotCovered(not_covered("torch_sparse", what))


def _rows_from_pointer(rowptr: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(rowptr.numel() - 1, device=rowptr.device)
    return rows.repeat_interleave(rowptr.diff())


class SparseTensor:
    """A sparse matrix that may hold several entries at one place.

    Entries are kept sorted by row and then by column; entries at the same
    place stay in the order in which they were given.

    Args:
        row: Row of each entry, int64, shape ``(nnz,)``.
        rowptr: Instead of ``row``: first entry of each row and the end, shape
            ``(rows + 1,)``.
        col: Column of each entry, int64, shape ``(nnz,)``.
        value: Value of each entry, shape ``(nnz, *)``, or None.
        sparse_sizes: Number of rows and of columns, either may be None and is
            then taken from the largest index.
        is_sorted: The entries are known to be sorted.
        trust_data: Leave out the check that the indices fit the sizes.
    """

    storage: Storage

    def __init__(
        self,
        row: torch.Tensor | None = None,
        rowptr: torch.Tensor | None = None,
        col: torch.Tensor | None = None,
        value: torch.Tensor | None = None,
        sparse_sizes: tuple[int | None, int | None] | None = None,
        is_sorted: bool = False,
        trust_data: bool = False,
    ) -> None:
        if col is None or (row is None and rowptr is None):
            raise ValueError("a SparseTensor needs `col` and one of `row` and `rowptr`")
        if row is None:
            row = _rows_from_pointer(rowptr)
        if row.dim() != 1 or row.shape != col.shape:
            raise ValueError("`row` and `col` must be 1-D and of the same length")
        if value is not None and value.size(0) != row.numel():
            raise ValueError("`value` must have one entry per index")
        rows, cols = sparse_sizes if sparse_sizes is not None else (None, None)
        if rows is None:
            rows = rowptr.numel() - 1 if rowptr is not None else _count(row)
        cols = _count(col) if cols is None else cols
        if not trust_data and (_count(row) > rows or _count(col) > cols):
            raise ValueError(f"an index lies outside of the sizes ({rows}, {cols})")
        if not is_sorted:
            # Stable, so that copies of an entry keep their order.
            key = row * max(int(cols), 1) + col
            order = torch.argsort(key, stable=True)
            row, col = row[order], col[order]
            value = value[order] if value is not None else None
        self.storage = Storage(row, col, value, (int(rows), int(cols)))

    def _with(self, value: torch.Tensor | None) -> SparseTensor:
        row, col, _ = self.coo()
        return SparseTensor(row, None, col, value, self.sparse_sizes(), True, True)

    def coo(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Row ``(nnz,)``, column ``(nnz,)`` and value ``(nnz, *)`` or None."""
        return self.storage.row(), self.storage.col(), self.storage.value()

    def csr(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Row pointer ``(rows + 1,)``, column ``(nnz,)`` and value or None."""
        return self.storage.rowptr(), self.storage.col(), self.storage.value()

    def sparse_sizes(self) -> tuple[int, int]:
        """Number of rows and of columns."""
        return self.storage.sparse_sizes()

    def sparse_size(self, dim: int) -> int:
        """Number of rows (``dim=0``) or of columns (``dim=1``)."""
        return self.sparse_sizes()[dim]

    def sizes(self) -> list[int]:
        """Rows, columns and the trailing sizes of the values."""
        value = self.storage.value()
        return list(self.sparse_sizes()) + (list(value.shape[1:]) if value is not None else [])

    def size(self, dim: int) -> int:
        """One of :meth:`sizes`."""
        return self.sizes()[dim]

    def nnz(self) -> int:
        """Number of entries."""
        return self.storage.col().numel()

    def has_value(self) -> bool:
        """Whether the entries have values."""
        return self.storage.value() is not None

    def device(self) -> torch.device:
        """Device of the indices."""
        return self.storage.col().device

    def dtype(self) -> torch.dtype:
        """Type of the values, float32 without values."""
        value = self.storage.value()
        return value.dtype if value is not None else torch.float32

    def set_value_(self, value: torch.Tensor | None, layout: str | None = None) -> SparseTensor:
        """Replace the values in place by ``value``, shape ``(nnz, *)``, or drop them.

        ``layout`` may be "coo" or "csr", both meaning the stored order.
        """
        if layout not in (None, "coo", "csr"):
            refuse("torch_sparse", f"SparseTensor.set_value with layout={layout!r}")
        if value is not None and value.size(0) != self.nnz():
            raise ValueError("`value` must have one entry per index")
        self.storage._value = value
        return self

    def set_value(self, value: torch.Tensor | None, layout: str | None = None) -> SparseTensor:
        """Like :meth:`set_value_`, but return a new matrix."""
        return self._with(None).set_value_(value, layout)

    def sum(self, dim: int | None = None) -> torch.Tensor:
        """Sum the values over all entries or one dimension.

        Without values every entry counts 1 (in float32). Shape ``(rows, *)``
        for ``dim=1``, ``(cols, *)`` for ``dim=0``, ``(*)`` for None.
        """
        row, col, value = self.coo()
        if value is None:
            value = torch.ones(self.nnz(), dtype=self.dtype(), device=self.device())
        if dim is None:
            return value.sum(0)
        if dim not in (0, 1, -1, -2) or (dim < 0 and value.dim() > 1):
            refuse("torch_sparse", f"SparseTensor.sum with dim={dim}")
        dim = dim % 2
        index, size = (row, self.sparse_size(0)) if dim == 1 else (col, self.sparse_size(1))
        return value.new_zeros((size, *value.shape[1:])).index_add(0, index, value)

    def index_select(self, dim: int, idx: torch.Tensor) -> SparseTensor:
        """Take rows ``idx`` ``(K,)``, repeats allowed, as rows 0 to ``K - 1``."""
        if dim != 0:
            refuse("torch_sparse", "the selection of columns of a SparseTensor")
        _, col, value = self.coo()
        rowptr = self.storage.rowptr()
        count = rowptr.diff()[idx]
        row = torch.arange(idx.numel(), device=idx.device).repeat_interleave(count)
        # Position within the row's run, shifted to where the run starts.
        start = rowptr[:-1][idx] - (count.cumsum(0) - count)
        taken = torch.arange(row.numel(), device=idx.device) + start[row]
        value = value[taken] if value is not None else None
        sizes = (idx.numel(), self.sparse_size(1))
        return SparseTensor(row, None, col[taken], value, sizes, True, True)

    def __getitem__(self, index: Any) -> SparseTensor:
        """Take rows by an int64 tensor ``(K,)`` or by a mask ``(rows,)``."""
        if isinstance(index, torch.Tensor) and index.dim() == 1:
            if index.dtype == torch.bool:
                if index.numel() != self.sparse_size(0):
                    raise IndexError("the mask must have one entry per row")
                index = index.nonzero().view(-1)
            if index.dtype == torch.int64:
                return self.index_select(0, index)
        refuse("torch_sparse", "indexing of a SparseTensor other than by a 1-D tensor of rows")

    def __getattr__(self, name: str) -> NoReturn:
        _missing(f"SparseTensor.{name}", name)

    def __repr__(self) -> str:
        rows, cols = self.sparse_sizes()
        return f"SparseTensor(stand-in, size=({rows}, {cols}), nnz={self.nnz()})"


def _count(index: torch.Tensor) -> int:
    return int(index.max()) + 1 if index.numel() > 0 else 0
