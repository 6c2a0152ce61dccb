"""Errors of ``ndem fit``."""

from __future__ import annotations

from ndem_ocp.errors import NDeMError


class FitError(NDeMError, ValueError):
    """Something that a fit cannot go on with; the message says what and what to do."""
