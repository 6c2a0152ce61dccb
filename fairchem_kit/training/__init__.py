"""Resumable training with fairchem 1.10: trainer, components, losses, checks of configurations.

Nothing here depends on the method. ``trainer.py`` has the trainer, ``component.py`` lists the
moments at which it calls its components, ``resume/`` has everything about resuming, and ``checks/``
finds mistakes in configurations.
"""

from fairchem_kit.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {f"{__name__}.losses": ("SquaredL2Loss",), f"{__name__}.trainer": ("Trainer",)},
)
