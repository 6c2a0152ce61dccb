"""NDeM (Node Denoising on non-Equilibrium Molecules) for fairchem-core 1.10.

Importing the package registers its trainer, models, heads and losses with fairchem, under
``ndem``, ``ndem_hydra``, ``ndem_equiformer_v2_head`` and ``squared_l2``; the dotted names
(``ndem_ocp.NDeMTrainer``) work in every process without any import. Where fairchem is absent,
``ndem_ocp.method`` still works: it needs torch alone.
"""

import importlib.util

__version__ = "0.1.0"

if importlib.util.find_spec("fairchem") is not None:
    import ndem_ocp_standins

    ndem_ocp_standins.install()  # before fairchem, which imports torch_scatter and torch_sparse

    from ndem_ocp.data.reader import LmdbReader
    from ndem_ocp.models import (
        EnergyGradientHead,
        EquiformerV2AuxiliaryHead,
        EquiformerV2Backbone,
        EquiformerV2EnergyHead,
        EquiformerV2ForceHead,
        TorchMDDipoleHead,
        TorchMDETBackbone,
        TorchMDScalarHead,
        TorchMDSpatialExtentHead,
        TorchMDTensorNetBackbone,
        TorchMDVectorHead,
        TwoViewHydra,
    )
    from ndem_ocp.report.history import HistoryLogger
    from ndem_ocp.training import NDeMTrainer, SquaredL2Loss

    __all__ = [
        "EnergyGradientHead",
        "EquiformerV2AuxiliaryHead",
        "EquiformerV2Backbone",
        "EquiformerV2EnergyHead",
        "EquiformerV2ForceHead",
        "HistoryLogger",
        "LmdbReader",
        "NDeMTrainer",
        "SquaredL2Loss",
        "TorchMDDipoleHead",
        "TorchMDETBackbone",
        "TorchMDScalarHead",
        "TorchMDSpatialExtentHead",
        "TorchMDTensorNetBackbone",
        "TorchMDVectorHead",
        "TwoViewHydra",
        "__version__",
    ]
