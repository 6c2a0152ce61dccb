"""Evaluating a trained model: errors on splits, files per structure, submissions, relaxations."""

from fairchem_kit.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        f"{__name__}.errors": ("EvaluationError",),
        f"{__name__}.samples": ("Samples", "read_samples", "splits_in"),
    },
)
