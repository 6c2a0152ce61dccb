"""From a plain ``hydra`` model configuration to the two-view one."""

from __future__ import annotations

import copy
import logging
from typing import Any

from fairchem.core.common.registry import registry

from fairchem_kit.errors import UserError
from ndem_ocp.method import NDeMSettings
from ndem_ocp.models.equiformer_names import BACKBONE, to_ours
from ndem_ocp.models.two_view import FORCES, SHARED

# Written into configurations and checkpoints: the dotted name resolves in every process and in
# stock fairchem, where a short name would need this package to be imported first. The model in
# turn imports this package, so heads can have short names.
TWO_VIEW_MODEL = "ndem_ocp.TwoViewHydra"
TWO_VIEW_NAMES = (TWO_VIEW_MODEL, "ndem_hydra", "ndem_ocp.models.TwoViewHydra")
GENERIC_HEAD = "ndem_edge_vector_head"
# Default auxiliary heads of fairchem's backbones and ours. The class of any other backbone can name
# its own in the attribute ``ndem_auxiliary_head``: a head's name, or {"module": name,
# ...arguments}.
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
# fairchem's single-class models: the file in configs/backbones with the same network.
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
    "escn_export": "escn_export is eSCN for torch.export and has no separate heads, so there is "
    "nowhere to add an auxiliary head. Train configs/backbones/escn.yml.",
}


class ModelConfigError(UserError, ValueError):
    """A model configuration to which NDeM cannot be added; the message says what to do."""


def two_view_config(
    model: dict[str, Any],
    settings: NDeMSettings,
    auxiliary_head: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The model configuration that trains with NDeM (a new dict).

    Args:
        model: fairchem's ``model`` section, ``name: hydra`` with ``backbone`` and ``heads``.
        settings: ``head`` and ``learned_curvature`` are used.
        auxiliary_head: {"module": ..., ...}, or without "module" arguments of the backbone's
            default head; None: the default head.

    Raises:
        ModelConfigError: if the model is not a hydra model, or has no force output and needs one.
    """
    config = copy.deepcopy(model)
    name = config.get("name")
    if name in TWO_VIEW_NAMES:  # from a checkpoint: already built for NDeM
        return config
    if name != "hydra":
        raise ModelConfigError(_not_hydra(name))
    _check_forces(config, settings)
    _caution(config.get("backbone") or {})
    config["name"] = TWO_VIEW_MODEL
    config["force_head"] = FORCES
    config["learned_curvature"] = settings.learned_curvature
    if settings.head == SHARED:
        config["auxiliary_head"] = {"module": SHARED}
        return config
    given = dict(auxiliary_head or {})
    if "module" not in given:
        given = {**default_auxiliary_head(config), **given}
    config["auxiliary_head"] = given
    # fairchem's heads on our backbone are replaced by our heads, which have the same parameters
    return to_ours(config) if config["backbone"].get("model") == BACKBONE else config


def default_auxiliary_head(model: dict[str, Any]) -> dict[str, Any]:
    """{"module": ..., ...} of the auxiliary head f' if the configuration does not name one.

    The first that exists of: the default for the backbone, the ``ndem_auxiliary_head`` of the
    backbone's class, another copy of the model's force head, the generic edge-vector head.
    """
    backbone = (model.get("backbone") or {}).get("model")
    found = AUXILIARY_HEADS.get(backbone)
    if found is None and backbone is not None:
        found = getattr(registry.get_model_class(backbone), "ndem_auxiliary_head", None)
    if found is None:
        found = (model.get("heads") or {}).get(FORCES, GENERIC_HEAD)
    return {"module": found} if isinstance(found, str) else copy.deepcopy(found)


def _check_forces(config: dict[str, Any], settings: NDeMSettings) -> None:
    """Refuse a model without f(X) of Eq. 17, unless f(X) is not needed."""
    heads = config.get("heads") or {}
    # With pass_through_head_outputs any head may return an output of this name.
    if FORCES in heads or config.get("pass_through_head_outputs"):
        return
    if not settings.needs_main_forces and settings.head != SHARED:
        return
    raise ModelConfigError(
        f"model.heads has no {FORCES!r} (it has: {', '.join(heads) or 'none'}). NDeM needs the "
        "main force head under that name. If one head returns both energy and forces, set "
        "model.pass_through_head_outputs: True. Without forces (equilibrium structures), set "
        "task.ndem.clean_forces: zero, with a separate auxiliary head."
    )


def _caution(backbone: dict[str, Any]) -> None:
    """Warn about settings that fail for some structures without an error."""
    quadruplets = backbone.get("model") == "gemnet_oc_backbone" and backbone.get("quad_interaction")
    if quadruplets and not backbone.get("direct_forces"):
        logging.warning(
            "GemNet-OC with quadruplets: forces that are gradients of the energy are NaN if "
            "atoms are collinear, as in a perfect crystal. Set model.backbone.quad_interaction: "
            "False, or use direct forces."
        )


def _not_hydra(name: str | None) -> str:
    if name in IMPOSSIBLE:
        return IMPOSSIBLE[name]
    same = (
        f"configs/backbones/{SINGLE_CLASS[name]} is the same network in that form."
        if name in SINGLE_CLASS
        else "For a model of your own, docs/backbones.md has an adapter of forty lines."
    )
    return (
        f"NDeM wraps fairchem's hydra models, and model.name is {name!r}. Write the model as "
        "name: hydra with backbone: and heads: (docs/configs.md shows both forms side by side). "
        f"{same}"
    )
