"""Errors of ``ndem report``."""

from __future__ import annotations

from ndem_ocp.errors import NDeMError


class ReportError(NDeMError, RuntimeError):
    """A folder without runs, or wrong files; the message says why and what to do."""
