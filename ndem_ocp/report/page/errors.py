"""What makes a report impossible."""

from __future__ import annotations

from ndem_ocp.errors import NDeMError


class ReportError(NDeMError, RuntimeError):
    """A folder that holds no run, or files that are none; the message says why and what to do."""
