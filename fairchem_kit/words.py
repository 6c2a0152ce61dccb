"""Numbers in sentences."""

from __future__ import annotations

from numbers import Real
from typing import Any


def counted(number: Any, noun: str, plural: str = "") -> str:
    """``1 frame``, ``2 frames``, ``12,000 frames``.

    Args:
        number: how many; what is no number, as in a damaged record, is shown as it is.
        noun: in the singular, also of several words. plural: if not with an s.
    """
    shown = f"{number:,}" if isinstance(number, Real) else str(number)
    return f"{shown} {noun if number == 1 else plural or noun + 's'}"
