"""Models: the two-view wrapper of fairchem's hydra models, and auxiliary force heads."""

from ndem_ocp.models.build import ModelConfigError, two_view_config
from ndem_ocp.models.equiformer_v2 import EquiformerV2AuxiliaryHead
from ndem_ocp.models.two_view import NOISY_FORCES, AuxiliaryHead, TwoViewHydra
from ndem_ocp.models.views import join_views, split_output, with_second_view

__all__ = [
    "NOISY_FORCES",
    "AuxiliaryHead",
    "EquiformerV2AuxiliaryHead",
    "ModelConfigError",
    "TwoViewHydra",
    "join_views",
    "split_output",
    "two_view_config",
    "with_second_view",
]
