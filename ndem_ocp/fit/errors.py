"""Errors of ``ndem fit``."""

from __future__ import annotations

from ndem_ocp.errors import NDeMError


class FitError(NDeMError, ValueError):
    """A fit cannot continue; the message says why and what to do."""
