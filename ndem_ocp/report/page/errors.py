"""What makes a report impossible."""

from __future__ import annotations


class ReportError(RuntimeError):
    """A folder that holds no run, or files that are none; the message says why and what to do."""
