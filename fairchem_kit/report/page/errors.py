"""Errors of ``ndem report``."""

from __future__ import annotations

from fairchem_kit.errors import UserError


class ReportError(UserError, RuntimeError):
    """A folder without runs, or wrong files; the message says why and what to do."""
