"""What the model of an objective is: the plain one, with two views, or told forces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ndem_ocp.method import NDeMSettings, Objective
from ndem_ocp.models.build import two_view_config
from ndem_ocp.models.dens import FORCE_EMBEDDING, dens_config
from ndem_ocp.models.two_view import NOISY_FORCES

_HEAD = f"output_heads.{NOISY_FORCES}"
Build = Callable[[dict[str, Any], NDeMSettings, dict[str, Any] | None], dict[str, Any]]
# Objective.model -> how its section is made, submodules that the plain model does not have
KINDS: dict[str, tuple[Build, tuple[str, ...]]] = {
    "plain": (lambda model, settings, head: model, ()),
    "two_view": (two_view_config, (_HEAD,)),
    "told_forces": (dens_config, (_HEAD, f"backbone.{FORCE_EMBEDDING}")),
}


def model_config(
    objective: Objective, model: dict[str, Any], auxiliary_head: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The ``model`` section that an objective trains, from the plain one.

    Raises:
        ModelConfigError: if it cannot be put on this model.
    """
    build, _ = KINDS[objective.model]
    return build(model, objective.settings, auxiliary_head)


def auxiliary_modules(objective: Objective) -> tuple[str, ...]:
    """Dotted names of the submodules that the objective's model has and the plain one has not."""
    return KINDS[objective.model][1]
