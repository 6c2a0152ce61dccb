"""Naming a key that nobody reads, and the one that was meant."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fairchem.core.common import distutils

from fairchem_kit.errors import ConfigError

SHOWN = 60  # characters of a value in a message


def raise_if_any(problems: Iterable[str]) -> None:
    """Stop with all mistakes at once.

    Raises:
        ConfigError: if there is one.
    """
    found = list(dict.fromkeys(problems))
    if len(found) == 1:
        raise ConfigError(found[0])
    if found:
        listed = "\n".join(f"- {problem}" for problem in found)
        raise ConfigError(f"{len(found)} mistakes in the configuration:\n{listed}")


def warn(message: str) -> None:
    """Log a warning on rank 0 only."""
    if distutils.is_master():
        logging.warning(message)


def shown(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def hint(name: Any, valid: Iterable[str]) -> str:
    """The close matches of a name, or all valid names, as a sentence."""
    names = [str(key) for key in valid]
    close = _close(name, names, 2, 0.6)
    if close:
        return f"Did you mean {' or '.join(map(repr, close))}?"
    return f"Valid: {', '.join(sorted(names)) or 'none'}."


def is_close(name: Any, valid: Iterable[str]) -> bool:
    """Whether a name differs from a valid one by a letter or two."""
    return bool(_close(name, [str(key) for key in valid], 1, 0.8))


def _close(name: Any, names: list[str], count: int, cutoff: float) -> list[str]:
    plain: dict[str, str] = {}
    for key in names:
        plain.setdefault(key.lower(), key)
    found = difflib.get_close_matches(str(name).lower(), plain, n=count, cutoff=cutoff)
    return [plain[key] for key in found]


def unknown_keys(
    section: Any,
    valid: Iterable[str],
    where: str,
    harmless: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Sentences about keys of ``section`` that nobody reads.

    Args:
        section: a mapping; None is an empty one.
        valid: the keys that are read.
        where: dotted path of the section.
        harmless: keys that are not read and yet common -> why they do nothing: a warning each.
    """
    if section is None:
        return
    if not isinstance(section, Mapping):
        yield f"{where} must be a mapping of keys to values, not {shown(section)}."
        return
    valid = list(valid)
    for key, value in section.items():
        if key in valid:
            continue
        if harmless and key in harmless:
            warn(f"{where}.{key} = {shown(value)} does nothing here: {harmless[key]}.")
            continue
        yield (
            f"{where}.{key} = {shown(value)}: there is no such key, and nothing would read it. "
            f"{hint(key, valid)} Rename it or take it out."
        )
