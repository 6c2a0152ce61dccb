"""EquiformerV2 with upstream's parameters and outputs at a fraction of its time and memory."""

from ndem_ocp.models.equiformer.backbone import EDGES, EquiformerV2Backbone
from ndem_ocp.models.equiformer.edges import Edges
from ndem_ocp.models.equiformer.heads import EquiformerV2EnergyHead, EquiformerV2ForceHead

__all__ = [
    "EDGES",
    "Edges",
    "EquiformerV2Backbone",
    "EquiformerV2EnergyHead",
    "EquiformerV2ForceHead",
]
