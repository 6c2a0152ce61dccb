"""Judging a trained model: errors on splits, files per structure, submissions, relaxations."""

from ndem_ocp.evaluation.errors import EvaluationError
from ndem_ocp.evaluation.samples import Samples, read_samples, splits_in

__all__ = ["EvaluationError", "Samples", "read_samples", "splits_in"]
