"""NDeM (Node Denoising on non-Equilibrium Molecules) for fairchem-core 1.10 and 2.24.

Importing the package is quick and loads neither torch nor fairchem: its names are imported when
they are first used, and register its trainer, models, heads, losses, reader and logger with
fairchem then, under ``ndem``, ``ndem_hydra``, ``ndem_lmdb``, ``squared_l2`` and so on. The dotted
names (``trainer: ndem_ocp.NDeMTrainer``) work in every process without any import; so do the short
ones if fairchem reads its plug-in folder, as all its commands do. A script that looks up a short
name in fairchem's registry must call :func:`register` first.

With fairchem-core 2 these names are not available; use :mod:`ndem_ocp.fairchem2`, with
``_target_: ndem_ocp.fairchem2.NDeMTrainEvalUnit`` in a configuration. ``ndem_ocp.method`` works
without fairchem; it only needs torch.
"""

from __future__ import annotations

import importlib

from fairchem_kit import __version__
from fairchem_kit.errors import UserError as NDeMError
from fairchem_kit.hosts import require_host
from fairchem_kit.lazy import lazy_names

_HOMES = {
    "fairchem_kit.data.reader": ("LmdbReader",),
    "fairchem_kit.inference": ("calculator",),
    "ndem_ocp.models": (
        "EnergyGradientHead",
        "EquiformerV2AuxiliaryHead",
        "EquiformerV2Backbone",
        "EquiformerV2EnergyHead",
        "EquiformerV2ForceHead",
        "TorchMDDipoleHead",
        "TorchMDETBackbone",
        "TorchMDScalarHead",
        "TorchMDSpatialExtentHead",
        "TorchMDTensorNetBackbone",
        "TorchMDVectorHead",
        "TwoViewHydra",
    ),
    "fairchem_kit.history.logger": ("HistoryLogger",),
    "ndem_ocp.trainer": ("NDeMTrainer",),
    "fairchem_kit.training": ("SquaredL2Loss",),
}


def register() -> None:
    """Register everything of this package with fairchem, under its short names.

    Raises:
        ImportError: if fairchem-core 1.10 is not installed or cannot be imported.
    """
    require_host(1, "This name of ndem_ocp")
    try:
        for module, names in _HOMES.items():
            for name in names:  # getattr, because a module may itself be lazy
                getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ImportError(
            "except for ndem_ocp.method and ndem_ocp.fairchem2, ndem_ocp needs fairchem-core 1.10 "
            f"({error}); `ndem doctor` shows what is installed here.",
            name=error.name,
        ) from error


# A configuration with one dotted name may use short names for everything else.
__getattr__, __dir__, _names = lazy_names(__name__, _HOMES, before=register)

__all__ = ["NDeMError", "__version__", "register", *_names]
