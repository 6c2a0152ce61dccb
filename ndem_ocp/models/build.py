"""From a plain ``hydra`` model configuration to the two-view one."""

from __future__ import annotations

import copy
from typing import Any

from ndem_ocp.method import NDeMSettings
from ndem_ocp.models.two_view import SHARED

# Written into configurations and checkpoints: the dotted name resolves in every process and in
# stock fairchem, where a short name would need this package to be imported first.
TWO_VIEW_MODEL = "ndem_ocp.TwoViewHydra"
TWO_VIEW_NAMES = (TWO_VIEW_MODEL, "ndem_hydra", "ndem_ocp.models.TwoViewHydra")
# Auxiliary head for a backbone's registered name; other backbones get a second copy of their
# main force head.
AUXILIARY_HEADS = {"equiformer_v2_backbone": "ndem_ocp.EquiformerV2AuxiliaryHead"}


class ModelConfigError(ValueError):
    """A model configuration that NDeM cannot be put on; the message says the way out."""


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
        force_head: name of the main force head.

    Raises:
        ModelConfigError: if the model is not a hydra model or has no such force head.
    """
    config = copy.deepcopy(model)
    name = config.get("name")
    if name in TWO_VIEW_NAMES:  # from a checkpoint: already built for NDeM
        return config
    if name != "hydra":
        raise ModelConfigError(
            f"NDeM wraps fairchem's hydra models, and model.name is {name!r}. Write the model as "
            "name: hydra with backbone: and heads: (docs/configs.md shows both forms side by side)."
        )
    heads = config.get("heads") or {}
    if force_head not in heads:
        raise ModelConfigError(
            f"model.heads has no {force_head!r} (it has: {', '.join(heads) or 'none'}). NDeM needs "
            "the main force head under that name."
        )
    config["name"] = TWO_VIEW_MODEL
    config["force_head"] = force_head
    config["learned_curvature"] = settings.learned_curvature
    if settings.head == SHARED:
        config["auxiliary_head"] = {"module": SHARED}
        return config
    given = dict(auxiliary_head or {})
    if "module" not in given:
        backbone = (config.get("backbone") or {}).get("model")
        default = AUXILIARY_HEADS.get(backbone)
        given = {**({"module": default} if default else heads[force_head]), **given}
    config["auxiliary_head"] = given
    return config
