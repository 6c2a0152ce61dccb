"""Progress of a long task on stderr: a bar on a terminal, a line now and then in a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from fairchem_kit.words import counted

EVERY_S = 60.0  # between two lines in a file


def bar(
    items: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    desc: str = "",
    unit: str = "item",
    show: bool = True,
    leave: bool = True,
) -> Any:
    """A bar with the interface of tqdm: iterate over it, or call ``update`` and ``close``.

    Where stderr is no terminal (a SLURM log, ``2> file``), it prints a line every minute instead.

    Args:
        items: to iterate over; None if ``update`` is called. total: number of items.
        desc, unit: for display. show: display anything. leave: keep the finished bar in view.
    """
    if show and not sys.stderr.isatty():
        return Lines(items, total, desc, unit)
    from tqdm import tqdm

    return tqdm(items, total=total, desc=desc, unit=unit, disable=not show, leave=leave)


class Lines:
    """``scanning: 120 of 2000 files, 1 min, about 16 min left``, every ``EVERY_S`` seconds."""

    def __init__(
        self, items: Iterable[Any] | None, total: int | None, desc: str, unit: str
    ) -> None:
        self.items, self.desc, self.unit, self.n = items, desc, unit, 0
        self.total = len(items) if total is None and hasattr(items, "__len__") else total
        self.began = self.last = time.monotonic()

    def __iter__(self) -> Iterator[Any]:
        for item in self.items or ():
            yield item
            self.update()

    def update(self, n: int = 1) -> None:
        self.n += n
        now = time.monotonic()
        if now - self.last >= EVERY_S:
            self.last = now
            self._print(now - self.began)

    def _print(self, seconds: float) -> None:
        many = f"{self.unit}es" if self.unit.endswith("ch") else ""
        text = f"{self.desc}: {counted(self.n, self.unit, many)}, {_minutes(seconds)}"
        if self.total:
            left = _minutes(seconds / self.n * (self.total - self.n))
            text = f"{self.desc}: {self.n} of {counted(self.total, self.unit, many)}, "
            text += f"{_minutes(seconds)}, about {left} left"
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None: ...

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min"
