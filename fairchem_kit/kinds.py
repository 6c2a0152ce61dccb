"""What kind of value each key of a YAML file must have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

#: dotted key, with * for any name -> the type or types of its value, and how these are called.
#: Entries of a list have no name.
Kinds = Mapping[str, tuple[Any, str]]


def wrong_kinds(section: Any, kinds: Kinds) -> Iterator[tuple[str, Any, str]]:
    """(dotted key, value, what it must be) of each value of a wrong kind; absent keys are not."""
    for pattern, (kind, words) in kinds.items():
        for where, value in _found(section, pattern.split(".")):
            if not isinstance(value, kind):
                yield where, value, words


def _found(section: Any, names: list[str], where: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted key, value) of a pattern."""
    if not names:
        yield where, section
        return
    if isinstance(section, list | tuple):
        for entry in section:
            yield from _found(entry, names, where)
    if not isinstance(section, Mapping):
        return
    first, *rest = names
    for key in section if first == "*" else [first] if first in section else []:
        yield from _found(section[key], rest, f"{where}.{key}" if where else str(key))
