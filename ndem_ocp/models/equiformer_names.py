"""Names of fairchem's EquiformerV2 and of ours, and configurations converted between the two.

Both are the same network: ours computes the same function with the same parameters (names and
shapes), only faster. A checkpoint of either can be loaded into the other.
"""

from __future__ import annotations

import copy
from typing import Any

BACKBONE = "ndem_ocp.EquiformerV2Backbone"
ENERGY_HEAD = "ndem_ocp.EquiformerV2EnergyHead"
FORCE_HEAD = "ndem_ocp.EquiformerV2ForceHead"
# our name -> fairchem's registered name
UPSTREAM = {
    BACKBONE: "equiformer_v2_backbone",
    ENERGY_HEAD: "equiformerV2_scalar_head",
    FORCE_HEAD: "equiformerV2_vector_head",
}
OURS = {upstream: ours for ours, upstream in UPSTREAM.items()} | {
    "equiformer_v2_energy_head": ENERGY_HEAD,  # older names in fairchem
    "equiformer_v2_force_head": FORCE_HEAD,
}


def to_ours(model: dict[str, Any]) -> dict[str, Any]:
    """A hydra ``model`` section with our EquiformerV2 in place of fairchem's (a new dict)."""
    return _renamed(model, OURS)


def to_upstream(model: dict[str, Any]) -> dict[str, Any]:
    """A hydra ``model`` section with fairchem's EquiformerV2 in place of ours (a new dict)."""
    return _renamed(model, UPSTREAM)


def _renamed(model: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    model = copy.deepcopy(model)
    backbone = model.get("backbone") or {}
    if "model" in backbone:
        backbone["model"] = names.get(backbone["model"], backbone["model"])
    for head in (*(model.get("heads") or {}).values(), model.get("auxiliary_head") or {}):
        if "module" in head:
            head["module"] = names.get(head["module"], head["module"])
    return model
