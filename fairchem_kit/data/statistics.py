"""Statistics of a data set: normalizer values, zero-force error, curvature.

``dataset_statistics(path)`` reads the LMDBs once; ``Accumulator`` does the same for any stream of
records and can be merged over chunks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .accumulator import Accumulator, Statistics
from .errors import DataError
from .shards import iter_records, open_shard, record_count, shard_paths

__all__ = ["CHUNK", "Accumulator", "Statistics", "dataset_statistics"]
CHUNK = 500


def dataset_statistics(path: str | Path) -> Statistics:
    """Statistics of one split.

    Args:
        path: directory with \\*.lmdb files, or one such file.

    Raises:
        DataError: no records, or one that is missing or damaged.
    """
    path, total = Path(path), Accumulator()
    for shard in [path] if path.is_file() else shard_paths(path):
        with open_shard(shard) as env:
            count = record_count(env)
            for start in range(0, count, CHUNK):
                total.merge(_of_chunk(shard, env, start, min(start + CHUNK, count)))
    result = total.result()
    if result is None:
        raise DataError(f"{path}: no records")
    return result


def _of_chunk(shard: Path, env: Any, start: int, stop: int) -> Accumulator:
    accumulator, previous = Accumulator(), None
    for number, fields in iter_records(env, max(0, start - 1), stop):
        if isinstance(fields, DataError):
            raise DataError(f"{shard}: record {number}: {fields}; see `ndem data check`")
        if number >= start:
            accumulator.add(fields, previous)
        previous = fields
    return accumulator
