"""Reading and checking a configuration before anything expensive is built."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairchem.core.common import gp_utils

from ndem_ocp.method import NDeMSettings, SettingsError

FORCES = "forces"


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
    auxiliary_head = section.pop("auxiliary_head", None)
    if auxiliary_head is not None and not isinstance(auxiliary_head, Mapping):
        raise SettingsError("task.ndem.auxiliary_head must be a mapping such as {width: 0.5}.")
    for key in section:
        if difflib.get_close_matches(str(key), ["auxiliary_head"], cutoff=0.8):
            raise SettingsError(f"task.ndem.{key}: did you mean 'auxiliary_head'?")
    settings = NDeMSettings.from_mapping(section)
    task["ndem"] = settings.as_dict()
    if auxiliary_head is not None:
        auxiliary_head = dict(auxiliary_head)
        task["ndem"]["auxiliary_head"] = auxiliary_head
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
    outputs = config.get("outputs") or {}
    forces = outputs.get(FORCES)
    if forces is None or forces.get("level") != "atom":
        raise ConfigError(
            f"NDeM needs the output {FORCES!r} with level: atom under outputs: (found: "
            f"{', '.join(outputs) or 'none'})."
        )
    for key in ("train_on_free_atoms", "eval_on_free_atoms"):
        if key not in forces:
            raise ConfigError(f"outputs.{FORCES}.{key} is missing: set it to True (OC20) or False.")
    if config.get("gp_gpus") or gp_utils.initialized():
        raise ConfigError(
            "NDeM does not run with graph parallelism (--gp-gpus): the noise would differ between "
            "the ranks that share a structure. Leave --gp-gpus out."
        )


def check_data(config: dict[str, Any]) -> None:
    """Name a data path that is not there before fairchem fails on it in its own words.

    Raises:
        ConfigError: naming the key and the path.
    """
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
        metrics["primary_metric"] = "forces_mae"
        metrics.setdefault("metrics", {"energy": ["mae"], FORCES: ["mae"]})
        config["evaluation_metrics"] = metrics
        logging.info("evaluation_metrics.primary_metric is not set: using forces_mae.")
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
