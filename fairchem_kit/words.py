"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 frame``, ``2 frames``, ``12,000 frames``.

    Args:
        number: how many. noun: in the singular, also of several words. plural: if not with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
