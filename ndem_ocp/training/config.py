"""Reading and checking a configuration before anything expensive is built."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairchem.core.common import gp_utils
from fairchem.core.common.registry import registry

from ndem_ocp.method import NDeMSettings, SettingsError

FORCES = "forces"
AUXILIARY_HEAD = "auxiliary_head"  # the key of task.ndem that is not a setting of the method


class ConfigError(ValueError):
    """A configuration that cannot train; the message names the key and the way out."""


def read_task(config: dict[str, Any]) -> tuple[NDeMSettings, dict[str, Any] | None]:
    """Settings and auxiliary head from ``task.ndem``.

    ``task.ndem.auxiliary_head`` describes a module of the host; everything else there belongs to
    the method. The section is rewritten with all defaults, so that logs and checkpoints show what
    was used.
    """
    task = config["task"]
    section = task.get("ndem")
    if section is not None and not isinstance(section, Mapping):
        raise SettingsError(
            f"task.ndem must be a mapping such as {{coefficient: 1}}, not {section!r}."
        )
    section = dict(section or {})
    auxiliary_head = section.pop(AUXILIARY_HEAD, None)
    if auxiliary_head is not None and not isinstance(auxiliary_head, Mapping):
        raise SettingsError("task.ndem.auxiliary_head must be a mapping such as {width: 0.5}.")
    settings = NDeMSettings.from_mapping(section, host_keys=(AUXILIARY_HEAD,))
    task["ndem"] = settings.as_dict()
    if auxiliary_head is not None:
        auxiliary_head = dict(auxiliary_head)
        task["ndem"][AUXILIARY_HEAD] = auxiliary_head
    return settings, auxiliary_head


def check_config(config: dict[str, Any], settings: NDeMSettings) -> None:
    """Stop a run in its first second on what would stop or spoil it later.

    Raises:
        ConfigError: naming the key and the way out.
    """
    _default_primary_metric(config)
    if not settings.active:
        logging.info("task.ndem.coefficient is 0: training as the plain trainer does.")
        return
    _check_forces(config.get("outputs") or {}, settings)
    if config.get("gp_gpus") or gp_utils.initialized():
        raise ConfigError(
            "NDeM does not run with graph parallelism (--gp-gpus): the noise would differ between "
            "the ranks that share a structure. Leave --gp-gpus out."
        )


def _check_forces(outputs: dict[str, Any], settings: NDeMSettings) -> None:
    """The output ``forces``: what it must say, and who can do without it."""
    forces = outputs.get(FORCES)
    if forces is None and not settings.needs_main_forces:
        return
    if forces is None or forces.get("level") != "atom":
        raise ConfigError(
            f"objective: {settings.objective} needs the output {FORCES!r} with level: atom under "
            f"outputs: (found: {', '.join(outputs) or 'none'}). For structures at equilibrium "
            "without force labels set task.ndem.clean_forces: zero."
        )
    for key in ("train_on_free_atoms", "eval_on_free_atoms"):
        if key not in forces:
            raise ConfigError(f"outputs.{FORCES}.{key} is missing: set it to True (OC20) or False.")


def check_auxiliary_head(model: dict[str, Any]) -> None:
    """Name an argument that the auxiliary head does not have before Python does.

    Args:
        model: the model section with its ``auxiliary_head`` and module filled in.

    Raises:
        ConfigError: naming the key and the valid ones.
    """
    given = dict(model.get(AUXILIARY_HEAD) or {})
    module = given.pop("module", None)
    if module is None or module == "shared":
        return
    parameters = list(inspect.signature(registry.get_model_class(module)).parameters.values())
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    valid = [parameter.name for parameter in parameters[1:]]  # the first is the backbone
    for key in given:
        if key not in valid:
            close = difflib.get_close_matches(str(key), valid, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"task.ndem.{AUXILIARY_HEAD}.{key} is not an argument of {module}.{hint} Valid: "
                f"module, {', '.join(valid)}."
            )


def check_data(config: dict[str, Any], settings: NDeMSettings) -> None:
    """Name a data path that is not there before fairchem fails on it in its own words.

    Raises:
        ConfigError: naming the key and the path, or a normalizer that a setting needs.
    """
    transforms = (config.get("dataset") or {}).get("transforms") or {}
    without_forces = FORCES not in (config.get("outputs") or {})
    if settings.curvature is not None and without_forces:
        normalizer = transforms.get("normalizer") or {}
        if isinstance(normalizer, str) or FORCES not in normalizer:
            raise ConfigError(
                "task.ndem.curvature is divided by rms_F, and there is neither an output 'forces' "
                "nor a normalizer for it: give dataset.train.transforms.normalizer.forces, or use "
                "task.ndem.noise_scale."
            )
    for section, key in (("dataset", "train"), ("val_dataset", "val"), ("test_dataset", "test")):
        source = (config.get(section) or {}).get("src")
        if isinstance(source, str) and not Path(source).exists():
            raise ConfigError(
                f"dataset.{key}.src = {source!r}: there is no such file or directory "
                f"(from {Path.cwd()})."
            )


def _default_primary_metric(config: dict[str, Any]) -> None:
    """fairchem has no default for this trainer and fails without one, after loading the data."""
    metrics = config.get("evaluation_metrics") or {}
    if metrics.get("primary_metric") is None:
        outputs = list(config.get("outputs") or {})
        main = FORCES if FORCES in outputs or not outputs else outputs[0]
        metrics["primary_metric"] = f"{main}_mae"
        metrics.setdefault("metrics", {name: ["mae"] for name in outputs})
        config["evaluation_metrics"] = metrics
        logging.info(f"evaluation_metrics.primary_metric is not set: using {main}_mae.")
    known = {
        f"{target}_{fn}" if target not in fn and target != "misc" else fn
        for target, fns in (metrics.get("metrics") or {}).items()
        for fn in fns
    }
    if metrics["primary_metric"] not in known | {"loss"}:
        raise ConfigError(
            f"evaluation_metrics.primary_metric = {metrics['primary_metric']!r} is not among the "
            f"metrics that are computed: {', '.join(sorted(known))}."
        )
