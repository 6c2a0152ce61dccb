"""Resumable training under fairchem 1.10: trainer, components, losses, checks of a configuration.

Nothing here knows what is trained: ``trainer.py`` has the trainer, ``component.py`` the moments at
which it calls its components, ``resume/`` all that resuming is, ``checks/`` the configuration's.
"""

from fairchem_kit.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {f"{__name__}.losses": ("SquaredL2Loss",), f"{__name__}.trainer": ("Trainer",)},
)
