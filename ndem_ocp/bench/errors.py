"""The error of a benchmark that cannot be run as asked."""

from __future__ import annotations


class BenchError(RuntimeError):
    """A benchmark that cannot be run as asked, or whose arms fail; the message says the way out."""
