"""The kind of model that each objective needs: plain, with two views, or encoding forces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ndem_ocp.method import NDeMSettings, Objective
from ndem_ocp.models.build import two_view_config
from ndem_ocp.models.dens import FORCE_EMBEDDING, dens_config
from ndem_ocp.models.two_view import AUXILIARY_OUTPUT

_HEAD = f"output_heads.{AUXILIARY_OUTPUT}"
Build = Callable[[dict[str, Any], NDeMSettings, dict[str, Any] | None], dict[str, Any]]
# Objective.model -> function that makes the section, submodules that a plain model does not have
KINDS: dict[str, tuple[Build, tuple[str, ...]]] = {
    "plain": (lambda model, settings, head: model, ()),
    "two_view": (two_view_config, (_HEAD,)),
    "encoded_forces": (dens_config, (_HEAD, f"backbone.{FORCE_EMBEDDING}")),
}


def model_config(
    objective: Objective, model: dict[str, Any], auxiliary_head: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The ``model`` section for an objective, made from that of the plain model.

    Raises:
        ModelConfigError: if the objective cannot train this model.
    """
    build, _ = KINDS[objective.model]
    return build(model, objective.settings, auxiliary_head)


def auxiliary_modules(objective: Objective) -> tuple[str, ...]:
    """Dotted names of the submodules that the objective adds to the plain model."""
    return KINDS[objective.model][1]
