"""What an offline W&B run holds: its ``.wandb`` file, read with W&B's own protocol classes.

The file is a log in LevelDB's format: a header of 7 bytes, then blocks of 32 KiB of records with
4 bytes of checksum, 2 of length and 1 of type (1 whole, 2 first, 3 middle, 4 last).
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK = 32768


def records(path: Path) -> Iterator[Any]:
    """Every record of a ``.wandb`` file, in order."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, parts = 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def complete(path: Path, seconds: float = 60) -> list[Any]:
    """All records of a run that has ended; W&B's service may write the last ones a moment later."""
    until = time.monotonic() + seconds
    while True:
        found = list(records(path))
        if found and found[-1].WhichOneof("record_type") in ("exit", "final"):
            return found
        assert time.monotonic() < until, f"{path} has no end"
        time.sleep(0.1)


def history(path: Path) -> list[dict[str, Any]]:
    """Rows of the run's history, in order, with ``_step``."""
    rows = []
    for record in complete(path):
        if record.WhichOneof("record_type") == "history":
            row = {
                ".".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in record.history.item
            }
            rows.append({"_step": record.history.step.num, **row})
    return rows
