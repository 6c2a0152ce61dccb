"""Errors of ``ndem fit``."""

from __future__ import annotations

from fairchem_kit.errors import UserError


class FitError(UserError, ValueError):
    """A fit cannot continue; the message says why and what to do."""
