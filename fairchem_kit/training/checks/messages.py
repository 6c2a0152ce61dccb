"""Sentences about unknown keys, with suggestions."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fairchem.core.common import distutils

from fairchem_kit.errors import ConfigError

SHOWN = 60  # longest representation of a value in a message, in characters


def raise_if_any(problems: Iterable[str]) -> None:
    """Raise an error that lists all mistakes.

    Raises:
        ConfigError: if there are any.
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
    """A value, shortened for a message."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def hint(name: Any, valid: Iterable[str]) -> str:
    """A sentence with the closest valid names, or with all valid names."""
    names = [str(key) for key in valid]
    close = _close(name, names, 2, 0.6)
    if close:
        return f"Did you mean {' or '.join(map(repr, close))}?"
    return f"Valid: {', '.join(sorted(names)) or 'none'}."


def is_close(name: Any, valid: Iterable[str]) -> bool:
    """Whether a name is likely a misspelling of a valid one."""
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
    """One sentence for each unknown key of ``section``.

    Args:
        section: a mapping; None counts as empty.
        valid: the known keys.
        where: dotted path of the section.
        harmless: {common key without effect: why it has none}; these only give a warning.
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
            warn(f"{where}.{key} = {shown(value)} has no effect here: {harmless[key]}.")
            continue
        yield (
            f"{where}.{key} = {shown(value)}: there is no such key. "
            f"{hint(key, valid)} Rename or remove it."
        )
