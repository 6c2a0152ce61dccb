"""Errors of evaluations."""

from __future__ import annotations

from fairchem_kit.errors import UserError


class EvaluationError(UserError, RuntimeError):
    """A checkpoint, split or file that cannot be evaluated; the message says why and what to do."""
