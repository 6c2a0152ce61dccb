"""What makes an evaluation impossible."""

from __future__ import annotations


class EvaluationError(RuntimeError):
    """A checkpoint, split or file that cannot be evaluated; the message says why and what to do."""
