"""NDeM under fairchem 1.10: its trainer, the component behind ``task.ndem``, and its checks."""

from fairchem_kit.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {f"{__name__}.ndem_trainer": ("NDeMTrainer",)},
)
