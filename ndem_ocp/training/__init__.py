"""Training under fairchem: the trainer, its losses, schedules and configuration checks."""

from ndem_ocp.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {f"{__name__}.losses": ("SquaredL2Loss",), f"{__name__}.trainer": ("NDeMTrainer",)},
)
