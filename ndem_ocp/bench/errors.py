"""The error of a benchmark that cannot be run."""

from __future__ import annotations

from ndem_ocp.errors import NDeMError


class BenchError(NDeMError, RuntimeError):
    """A benchmark that cannot be run, or whose arms fail; the message says what to do."""
