"""Errors of evaluations."""

from __future__ import annotations

from ndem_ocp.errors import NDeMError


class EvaluationError(NDeMError, RuntimeError):
    """A checkpoint, split or file that cannot be evaluated; the message says why and what to do."""
