"""The error of a benchmark that cannot be run."""

from __future__ import annotations

from fairchem_kit.errors import UserError


class BenchError(UserError, RuntimeError):
    """A benchmark that cannot be run, or whose arms fail; the message says what to do."""
