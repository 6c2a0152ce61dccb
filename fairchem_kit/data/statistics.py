"""Statistics of a data set: normalizer values, zero-force error, curvature.

``dataset_statistics(path)`` reads the LMDBs once; ``Accumulator`` does the same for any stream of
records and can be merged over chunks.
"""

from __future__ import annotations

from pathlib import Path

from .accumulator import Accumulator, Statistics
from .errors import DataError
from .parallel import run_tasks
from .shards import iter_records, open_shard, record_count, shard_paths

__all__ = ["CHUNK", "Accumulator", "Statistics", "dataset_statistics"]
CHUNK = 500


def _chunk_statistics(task: tuple[str, int, int]) -> Accumulator:
    path, start, stop = task
    accumulator, previous = Accumulator(), None
    with open_shard(path) as env:
        for number, fields in iter_records(env, max(0, start - 1), stop):
            if isinstance(fields, DataError):
                raise DataError(f"{path}: record {number}: {fields}; see `ndem data check`")
            if number >= start:
                accumulator.add(fields, previous)
            previous = fields
    return accumulator


def dataset_statistics(path: str | Path, workers: int = 1, progress: bool = False) -> Statistics:
    """Statistics of one split.

    Args:
        path: directory with \\*.lmdb files, or one such file. workers: processes.
        progress: show a progress bar.

    Raises:
        DataError: no records, or one that is missing or damaged.
    """
    path = Path(path)
    tasks = []
    for shard in [path] if path.is_file() else shard_paths(path):
        with open_shard(shard) as env:
            count = record_count(env)
        tasks += [(str(shard), i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
    chunks = run_tasks(
        _chunk_statistics,
        tasks,
        workers=workers,
        describe="reading",
        size=lambda task: task[2] - task[1],
        progress=progress,
    )
    total = Accumulator()
    for chunk in chunks:
        total.merge(chunk)
    result = total.result()
    if result is None:
        raise DataError(f"{path}: no records")
    return result
