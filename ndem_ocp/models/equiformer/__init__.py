"""EquiformerV2 with fairchem's parameters and outputs, in a fraction of the time and memory.

In this package "upstream" is fairchem's implementation.
"""

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
