"""From a plain ``hydra`` model configuration to the two-view one."""

from __future__ import annotations

import copy
import logging
from typing import Any

from fairchem.core.common.registry import registry

from fairchem_kit.errors import UserError
from ndem_ocp.method import NDeMSettings
from ndem_ocp.models.two_view import SHARED
from ndem_ocp.models.variant import BACKBONE, to_ours

# Written into configurations and checkpoints: the dotted name resolves in every process and in
# stock fairchem, where a short name would need this package to be imported first. The model in
# turn imports this package, so heads can have short names.
TWO_VIEW_MODEL = "ndem_ocp.TwoViewHydra"
TWO_VIEW_NAMES = (TWO_VIEW_MODEL, "ndem_hydra", "ndem_ocp.models.TwoViewHydra")
GENERIC_HEAD = "ndem_edge_vector_head"
# Auxiliary head of backbones that are not ours to write in. A class of one's own says it itself,
# in its attribute ``ndem_auxiliary_head``: a head's name, or {"module": name, ...arguments}.
AUXILIARY_HEADS: dict[str, str] = {
    "equiformer_v2_backbone": "ndem_ocp.EquiformerV2AuxiliaryHead",
    BACKBONE: "ndem_ocp.EquiformerV2AuxiliaryHead",
    "escn_backbone": "escn_force_head",
    "esen_backbone": "esen_linear_force_head",
    "painn_backbone": "ndem_painn_vector_head",
    "gemnet_t_backbone": "ndem_gemnet_vector_head",
    "gemnet_oc_backbone": "ndem_gemnet_vector_head",
    "dimenetplusplus_backbone": "ndem_dimenet_vector_head",
    "torchmd_et_backbone": "ndem_torchmd_vector_head",
    "torchmd_tensornet_backbone": "ndem_torchmd_vector_head",
}
# fairchem's single-class models: the file of configs/backbones that has the same network.
SINGLE_CLASS = {
    "dimenetplusplus": "dimenet_plus_plus.yml",
    "equiformer_v2": "equiformer_v2.yml",
    "escn": "escn.yml",
    "gemnet_oc": "gemnet_oc.yml",
    "gemnet_t": "gemnet_t.yml",
    "painn": "painn.yml",
    "schnet": "schnet.yml",
    "scn": "scn.yml",
}
IMPOSSIBLE = {
    "gp_gemnet_t": "fairchem 1.10's gp_gemnet_t does not run, with NDeM or without: it reads "
    "GraphData.distance_vec, which that version renamed to edge_distance_vec. GemNet-T without "
    "graph parallelism is configs/backbones/gemnet_t.yml.",
    "escn_export": "escn_export is eSCN for torch.export, and has no heads to put an auxiliary "
    "one beside. Train configs/backbones/escn.yml.",
}


class ModelConfigError(UserError, ValueError):
    """A model configuration that NDeM cannot be put on; the message says what to do."""


def two_view_config(
    model: dict[str, Any],
    settings: NDeMSettings,
    auxiliary_head: dict[str, Any] | None = None,
    force_head: str = "forces",
) -> dict[str, Any]:
    """The model configuration that trains with NDeM (a new dict).

    Args:
        model: fairchem's ``model`` section, ``name: hydra`` with ``backbone`` and ``heads``.
        settings: decide between a separate and the shared head, and a learned curvature.
        auxiliary_head: {"module": ..., ...} in place of the default for the backbone; without
            "module", arguments of that default.
        force_head: name of the main force output.

    Raises:
        ModelConfigError: if the model is not a hydra model, or has no force output and needs one.
    """
    config = copy.deepcopy(model)
    name = config.get("name")
    if name in TWO_VIEW_NAMES:  # from a checkpoint: already built for NDeM
        return config
    if name != "hydra":
        raise ModelConfigError(_not_hydra(name))
    _check_forces(config, settings, force_head)
    _caution(config.get("backbone") or {})
    config["name"] = TWO_VIEW_MODEL
    config["force_head"] = force_head
    config["learned_curvature"] = settings.learned_curvature
    if settings.head == SHARED:
        config["auxiliary_head"] = {"module": SHARED}
        return config
    given = dict(auxiliary_head or {})
    if "module" not in given:
        given = {**default_auxiliary_head(config, force_head), **given}
    config["auxiliary_head"] = given
    # fairchem's heads on our backbone are replaced by our heads, which have the same parameters
    return to_ours(config) if config["backbone"].get("model") == BACKBONE else config


def default_auxiliary_head(model: dict[str, Any], force_head: str = "forces") -> dict[str, Any]:
    """{"module": ..., ...} of f' for a hydra model that asks for none.

    In this order: what is known for its backbone, what the backbone's class says of itself in
    ``ndem_auxiliary_head``, a second copy of its force head, the generic edge-vector head.
    """
    backbone = (model.get("backbone") or {}).get("model")
    found = AUXILIARY_HEADS.get(backbone)
    if found is None and backbone is not None:
        found = getattr(registry.get_model_class(backbone), "ndem_auxiliary_head", None)
    if found is None:
        found = (model.get("heads") or {}).get(force_head, GENERIC_HEAD)
    return {"module": found} if isinstance(found, str) else copy.deepcopy(found)


def _check_forces(config: dict[str, Any], settings: NDeMSettings, force_head: str) -> None:
    """f(X) of Eq. 17 must come from somewhere, unless it is zero by definition."""
    heads = config.get("heads") or {}
    # With pass_through_head_outputs outputs have names of their own, and any head may make them.
    if force_head in heads or config.get("pass_through_head_outputs"):
        return
    if not settings.needs_main_forces and settings.head != SHARED:
        return
    raise ModelConfigError(
        f"model.heads has no {force_head!r} (it has: {', '.join(heads) or 'none'}). NDeM needs the "
        "main force head under that name. If one head gives energy and forces, set "
        "model.pass_through_head_outputs: True. Without any forces (equilibrium structures), set "
        "task.ndem.clean_forces: zero, with a separate auxiliary head."
    )


def _caution(backbone: dict[str, Any]) -> None:
    """Warn of what works for some structures and silently fails for others."""
    quadruplets = backbone.get("model") == "gemnet_oc_backbone" and backbone.get("quad_interaction")
    if quadruplets and not backbone.get("direct_forces"):
        logging.warning(
            "GemNet-OC with quadruplets: forces that are gradients of the energy are NaN where "
            "atoms stand in a line, as in a perfect crystal. Set model.backbone.quad_interaction: "
            "False, or use direct forces."
        )


def _not_hydra(name: str | None) -> str:
    if name in IMPOSSIBLE:
        return IMPOSSIBLE[name]
    same = (
        f"configs/backbones/{SINGLE_CLASS[name]} is this network in that form."
        if name in SINGLE_CLASS
        else "For a model of your own, docs/backbones.md has an adapter of forty lines."
    )
    return (
        f"NDeM wraps fairchem's hydra models, and model.name is {name!r}. Write the model as "
        "name: hydra with backbone: and heads: (docs/configs.md shows both forms side by side). "
        f"{same}"
    )
