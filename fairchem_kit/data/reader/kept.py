"""Decoded records of a small data set, kept in memory."""

from __future__ import annotations

from torch_geometric.data import Data

#: Data sets with larger files are read from disk in every epoch.
LARGEST = 64 * 2**20
#: Memory of a record's tensors in addition to their values, in bytes, roughly.
_OVERHEAD = 8 * 2**10


class KeptRecords:
    """Records that were read before, by position.

    A few hundred frames are read thousands of times. Decoding and checking one takes about 1 ms,
    a sixth of a step of a small model with 8 molecules.

    Args:
        size: of the files, in bytes; above :data:`LARGEST` nothing is kept.
    """

    def __init__(self, size: int) -> None:
        self._left = LARGEST if size <= LARGEST else 0
        self._records: dict[int, Data] = {}

    def get(self, position: int) -> Data | None:
        """A copy of the record, whose tensors may be changed; None if it is not kept."""
        record = self._records.get(position)
        return None if record is None else record.clone()

    def keep(self, position: int, record: Data, size: int) -> None:
        """Keep a copy of a record if there is room; ``size``: its bytes in the file."""
        self._left -= size + _OVERHEAD
        if self._left >= 0:
            self._records[position] = record.clone()
