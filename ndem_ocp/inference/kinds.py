"""The names of a checkpoint's weights, for options: this module imports nothing."""

from __future__ import annotations

AUTO, EMA, LAST = "auto", "ema", "last"
KINDS = (AUTO, EMA, LAST)
