"""Models: the two-view wrapper for fairchem's hydra models, backbones and auxiliary force heads."""

from ndem_ocp.models.build import ModelConfigError, default_auxiliary_head, two_view_config
from ndem_ocp.models.edge_vector import DimeNetVectorHead, EdgeVectorHead, GemNetVectorHead
from ndem_ocp.models.equiformer import (
    EquiformerV2Backbone,
    EquiformerV2EnergyHead,
    EquiformerV2ForceHead,
)
from ndem_ocp.models.equiformer_v2 import EquiformerV2AuxiliaryHead
from ndem_ocp.models.heads import EnergyGradientHead, OutputHead, calls_of
from ndem_ocp.models.painn import PaiNNVectorHead
from ndem_ocp.models.schnet import SchNetBackbone
from ndem_ocp.models.scn import SCNBackbone, SCNVectorHead
from ndem_ocp.models.torchmd import TorchMDETBackbone, TorchMDTensorNetBackbone
from ndem_ocp.models.torchmd_heads import (
    TorchMDAuxiliaryHead,
    TorchMDDipoleHead,
    TorchMDScalarHead,
    TorchMDSpatialExtentHead,
    TorchMDVectorHead,
)
from ndem_ocp.models.two_view import AUXILIARY_OUTPUT, AuxiliaryHead, TwoViewHydra
from ndem_ocp.models.views import join_views, split_output, with_second_view

__all__ = [
    "AUXILIARY_OUTPUT",
    "AuxiliaryHead",
    "DimeNetVectorHead",
    "EdgeVectorHead",
    "EnergyGradientHead",
    "EquiformerV2AuxiliaryHead",
    "EquiformerV2Backbone",
    "EquiformerV2EnergyHead",
    "EquiformerV2ForceHead",
    "GemNetVectorHead",
    "ModelConfigError",
    "OutputHead",
    "PaiNNVectorHead",
    "SCNBackbone",
    "SCNVectorHead",
    "SchNetBackbone",
    "TorchMDAuxiliaryHead",
    "TorchMDDipoleHead",
    "TorchMDETBackbone",
    "TorchMDScalarHead",
    "TorchMDSpatialExtentHead",
    "TorchMDTensorNetBackbone",
    "TorchMDVectorHead",
    "TwoViewHydra",
    "calls_of",
    "default_auxiliary_head",
    "join_views",
    "split_output",
    "two_view_config",
    "with_second_view",
]
