"""Batches that a stopped command has finished, so that the same command continues with the others.

A batch's result depends on neither the number of ranks nor on other batches (see ``batches``), so
the results can be kept and used again, by any rank. They are written once a minute, and when the
command ends early:

    FOLDER/IDENTITY/SPLIT/NUMBER.pt     the results from batch NUMBER on that were new

IDENTITY is a hash of all that the results depend on. Files contain plain values and tensors, which
are read without running code.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import pickle
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairchem_kit.files import replacing, writable_folder
from fairchem_kit.words import counted

FINISHED = ".finished"  # folder in that of a command's files
INTERVAL = 60.0  # seconds between files
_DAMAGED = (
    *(OSError, EOFError, RuntimeError, pickle.UnpicklingError),
    *(ValueError, KeyError, TypeError),
)


def folder_of(folder: Path, split: str, identity: Mapping[str, Any]) -> Path:
    """Where the finished batches of a split are kept.

    Args:
        folder: of the command. split: its name. identity: all that the results depend on, as JSON.
    """
    text = json.dumps(identity, sort_keys=True, default=str)
    return folder / hashlib.sha256(text.encode()).hexdigest()[:16] / split


def forget(folder: Path) -> None:
    """Remove the finished batches of a command that has come to its end."""
    shutil.rmtree(folder, ignore_errors=True)


class Finished:
    """The finished batches of one split.

    Args:
        folder: from :func:`folder_of`, seen by all ranks; None keeps nothing on the disk.
        kinds: dataclasses of the results, which have the batch's ``number``, and in them.
        name: of the split, to say how many batches were finished before; None says nothing.
    """

    def __init__(
        self,
        folder: Path | None = None,
        kinds: tuple[type, ...] = (),
        name: str | None = None,
    ) -> None:
        self.folder, self._name = folder, name
        self._kinds = {kind.__name__: kind for kind in kinds}
        self._results: dict[int, Any] = {}
        self._new: list[Any] = []
        self._written = time.monotonic()

    @contextlib.contextmanager
    def missing(self, numbers: Sequence[int]) -> Iterator[list[int]]:
        """Context in which batches are computed: those of ``numbers`` that are not finished.

        Results that are added are on the disk when it is left, in whatever way.
        """
        wanted = set(numbers)
        for path in sorted(self.folder.glob("*.pt")) if self.folder else ():
            self._results |= {r.number: r for r in self._read(path) if r.number in wanted}
        if self._results and self._name:
            print(
                f"{self._name}: {counted(len(self._results), 'batch', 'batches')} of "
                f"{len(numbers)} from the command that was stopped.",
                file=sys.stderr,
            )
        self._written = time.monotonic()
        try:
            yield [number for number in numbers if number not in self._results]
        finally:
            self._write()

    def add(self, result: Any) -> None:
        """Keep the result of a batch."""
        self._results[result.number] = result
        self._new.append(result)
        if time.monotonic() - self._written > INTERVAL:
            self._write()

    def of(self, numbers: Iterable[int]) -> list[Any]:
        """The results of these batches, which are all finished."""
        return [self._results[number] for number in numbers]

    def _write(self) -> None:
        self._written = time.monotonic()
        if not self._new or self.folder is None:
            return
        writable_folder(self.folder)
        content = io.BytesIO()  # torch does not say that a disk is full
        torch.save([_plain(result) for result in self._new], content)
        with replacing(self.folder / f"{self._new[0].number}.pt") as temporary:
            temporary.write_bytes(content.getvalue())
        self._new = []

    def _read(self, path: Path) -> list[Any]:
        """The results in a file; none if it is damaged, because they can be computed again."""
        try:
            content = torch.load(path, weights_only=True)
            return [self._restored(value) for value in content]
        except _DAMAGED:
            return []

    def _restored(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.numpy()
        if isinstance(value, list):
            return [self._restored(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "of" not in value:
            return {key: self._restored(item) for key, item in value["items"].items()}
        if value["of"] == "array":
            return np.array(value["items"], dtype=object)
        items = [self._restored(item) for item in value["items"]]
        return tuple(items) if value["of"] == "tuple" else self._kinds[value["of"]](*items)


def _plain(value: Any) -> Any:
    """A result in values that are read without running code; see ``_restored``."""
    if is_dataclass(value):
        items = [_plain(getattr(value, field.name)) for field in fields(value)]
        return {"of": type(value).__name__, "items": items}
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "OU":
            return {"of": "array", "items": value.tolist()}
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, tuple):
        return {"of": "tuple", "items": [_plain(item) for item in value]}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {"items": {key: _plain(item) for key, item in value.items()}}
    return value
