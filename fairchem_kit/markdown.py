"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def table(head: Iterable[Any], rows: Iterable[Iterable[Any]], right_from: int | None = None) -> str:
    """A table, without a newline at its end.

    Args:
        head: names of the columns. rows: their cells, any that ``str`` takes. right_from: the
            first column that is flush right, as numbers are; None: no column is.
    """
    head = list(head)
    count = len(head) if right_from is None else right_from
    rule = ["---" if n < count else "---:" for n in range(len(head))]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in [head, rule, *rows])
