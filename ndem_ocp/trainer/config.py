"""Reading and checking ``task.ndem`` before anything expensive is built."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from fairchem.core.common import gp_utils

from fairchem_kit.training.checks.messages import ConfigError, raise_if_any
from fairchem_kit.training.checks.model import constructor_problems
from fairchem_kit.training.config import FORCES
from ndem_ocp.method import NDeMSettings, SettingsError
from ndem_ocp.method.settings import check_second_views

# Keys of task.ndem that are not settings of the method; texts for docs/settings_reference.md.
HOST_KEYS = {
    "auxiliary_head": "Arguments of the auxiliary head, such as `{width: 1.0}`, or another head: "
    "`{module: NAME, ...}`. For EquiformerV2 it is fairchem's force head with half the attention "
    "width (`width: 0.5`), which gives the paper's 157M parameters. docs/backbones.md lists the "
    "heads for other backbones. Not with `place: instead`, which trains the main heads.",
    "second_views": "A file made by `ndem data second-views`: displaced structures with labels "
    "(docs/second_views.md). Needed with `target: second_views` and only allowed with it.",
}
AUXILIARY_HEAD, SECOND_VIEWS = HOST_KEYS  # keys of a section and of a path
SECOND_VIEWS_OF = "second_views_of"  # provenance of this file, which the trainer adds


class TaskSection(NamedTuple):
    """The content of ``task.ndem``."""

    settings: NDeMSettings
    auxiliary_head: dict[str, Any] | None
    second_views: str | None  # path


def read_task(config: dict[str, Any]) -> TaskSection:
    """Read ``task.ndem``: settings of the method, auxiliary head, file of second views.

    All defaults are written into the section, so that logs and checkpoints show what was used.
    """
    task = config["task"] = config.get("task") or {}
    section = task.get("ndem")
    if section is not None and not isinstance(section, Mapping):
        raise SettingsError(
            f"task.ndem must be a mapping such as {{coefficient: 1}}, not {section!r}."
        )
    section = dict(section or {})
    auxiliary_head = section.pop(AUXILIARY_HEAD, None)
    second_views = section.pop(SECOND_VIEWS, None)
    section.pop(SECOND_VIEWS_OF, None)  # present in the configuration of a checkpoint
    if auxiliary_head is not None and not isinstance(auxiliary_head, Mapping):
        raise SettingsError("task.ndem.auxiliary_head must be a mapping such as {width: 0.5}.")
    _set_unit(section, config.get("outputs"))
    settings = NDeMSettings.from_mapping(section, host_keys=tuple(HOST_KEYS))
    check_second_views(settings, second_views, auxiliary_head)
    task["ndem"] = settings.as_dict()
    if second_views is not None:
        task["ndem"][SECOND_VIEWS] = second_views
    if auxiliary_head is not None:
        auxiliary_head = dict(auxiliary_head)
        task["ndem"][AUXILIARY_HEAD] = auxiliary_head
    return TaskSection(settings, auxiliary_head, second_views)


def _set_unit(section: dict[str, Any], outputs: Any) -> None:
    """Let ``energy_unit`` follow ``outputs.energy.unit``."""
    unit = _mapping(_mapping(outputs).get("energy")).get("unit")
    if unit is None:
        return
    given = section.setdefault("energy_unit", unit)
    if given != unit:
        raise SettingsError(
            f"task.ndem.energy_unit is {given!r}, but outputs.energy.unit is {unit!r}. Set it to "
            f"{unit!r}, or remove it: it follows the other."
        )


def check_config(config: dict[str, Any], settings: NDeMSettings) -> None:
    """Refuse configurations that NDeM cannot run with, in the first second of a run.

    Raises:
        ConfigError: naming the key and what to do.
    """
    if not settings.active:
        logging.info("task.ndem.coefficient is 0: this is plain training, without NDeM.")
        return
    if isinstance(config.get("outputs") or {}, Mapping):  # check_data reports anything else
        _check_forces(config.get("outputs") or {}, settings)
    if config.get("gp_gpus") or gp_utils.initialized():
        raise ConfigError(
            "NDeM does not run with graph parallelism (--gp-gpus): ranks that share a structure "
            "would have different noise. Remove --gp-gpus."
        )


def _check_forces(outputs: dict[str, Any], settings: NDeMSettings) -> None:
    """Check the section of the output ``forces``, unless the objective needs no forces."""
    forces = outputs.get(FORCES)
    if forces is None and not settings.needs_main_forces:
        return
    if not isinstance(forces, Mapping) or forces.get("level") != "atom":
        raise ConfigError(
            f"objective: {settings.objective} needs the output {FORCES!r} with level: atom under "
            f"outputs: (found: {', '.join(outputs) or 'none'}). For structures at equilibrium "
            "without force labels set task.ndem.clean_forces: zero."
        )
    for key in ("train_on_free_atoms", "eval_on_free_atoms"):
        if key not in forces:
            raise ConfigError(f"outputs.{FORCES}.{key} is missing: set it to True (OC20) or False.")


def check_auxiliary_head(model: dict[str, Any]) -> None:
    """Refuse arguments that the auxiliary head does not have, with a readable message.

    Args:
        model: the model section, including ``auxiliary_head`` with its module.

    Raises:
        ConfigError: naming the key and the valid ones.
    """
    given = model.get(AUXILIARY_HEAD) or {}
    if given.get("module") in (None, "shared"):
        return
    where = f"task.ndem.{AUXILIARY_HEAD}"
    raise_if_any(constructor_problems(given, where, "module", skip=("backbone",)))


def curvature_problems(config: Mapping[str, Any], settings: NDeMSettings) -> Iterator[str]:
    """The setting ``curvature`` without the normalizer of the forces that it needs."""
    if settings.curvature is None or FORCES in (config.get("outputs") or {}):
        return
    transforms = _mapping(_mapping(config.get("dataset")).get("transforms"))
    if FORCES not in _mapping(transforms.get("normalizer")):
        yield (
            "task.ndem.curvature is divided by rms_F, but there is neither an output 'forces' nor "
            "a normalizer of forces: set dataset.train.transforms.normalizer.forces, or use "
            "task.ndem.noise_scale instead."
        )


def _mapping(section: Any) -> Mapping[str, Any]:
    return section if isinstance(section, Mapping) else {}
