"""NDeM in fairchem 1.10: the trainer, its component for ``task.ndem``, and checks of settings."""

from fairchem_kit.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {f"{__name__}.ndem_trainer": ("NDeMTrainer",)},
)
