"""Reading and checking a configuration before anything expensive is built."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fairchem.core.common import gp_utils

from ndem_ocp.method import NDeMSettings, SettingsError
from ndem_ocp.pretrained.load import check_section
from ndem_ocp.training.checks.data import balancing_problems, record_problems
from ndem_ocp.training.checks.labels import switch_problems
from ndem_ocp.training.checks.metrics import computed_metrics, loss_problems, metric_problems
from ndem_ocp.training.checks.model import constructor_problems, model_problems
from ndem_ocp.training.checks.names import ConfigError, hint, raise_if_any
from ndem_ocp.training.checks.run import command_config, rank_zero_finds, top_level_problems
from ndem_ocp.training.checks.sections import (
    SPLITS,
    dataset_problems,
    logger_problems,
    optim_problems,
    output_problems,
    task_problems,
)
from ndem_ocp.training.checks.splits import KEY as VALIDATION_SPLITS
from ndem_ocp.training.checks.splits import split_problems
from ndem_ocp.training.checks.values import optim_value_problems

__all__ = [
    "FORCES",
    "ConfigError",
    "check_auxiliary_head",
    "check_config",
    "check_data",
    "check_records",
    "key_problems",
    "read_task",
    "trains",
]
FORCES = "forces"
ENERGY = "energy"
# The keys of task.ndem that are not settings of the method, as docs/settings_reference.md has them.
HOST_KEYS = {
    "auxiliary_head": "Arguments of the auxiliary head, such as `{width: 1.0}`, or another head: "
    "`{module: NAME, ...}`. For EquiformerV2 it is fairchem's force head with half the attention "
    "width (`width: 0.5`), which gives the paper's 157M parameters. docs/backbones.md has those of "
    "other backbones. Not with `place: instead`, which trains the main heads.",
    "second_views": "A file of `ndem data second-views`: displaced structures with labels "
    "(docs/second_views.md). Needed with `target: second_views`, and read with no other target.",
}
AUXILIARY_HEAD, SECOND_VIEWS = HOST_KEYS  # a module of fairchem's; a file
SECOND_VIEWS_OF = "second_views_of"  # what the file was made of, noted by the trainer


class TaskSection(NamedTuple):
    """``task.ndem``, read."""

    settings: NDeMSettings
    auxiliary_head: dict[str, Any] | None
    second_views: str | None  # path


def read_task(config: dict[str, Any]) -> TaskSection:
    """``task.ndem``: settings of the method, auxiliary head, file of second views.

    The section is rewritten with all defaults, so that logs and checkpoints show what was used.
    """
    task = config["task"] = config.get("task") or {}
    if not isinstance(task, Mapping):
        raise ConfigError(f"task must be a mapping of keys to values, not {task!r}.")
    section = task.get("ndem")
    if section is not None and not isinstance(section, Mapping):
        raise SettingsError(
            f"task.ndem must be a mapping such as {{coefficient: 1}}, not {section!r}."
        )
    section = dict(section or {})
    auxiliary_head = section.pop(AUXILIARY_HEAD, None)
    second_views = section.pop(SECOND_VIEWS, None)
    section.pop(SECOND_VIEWS_OF, None)  # of a checkpoint's configuration
    if auxiliary_head is not None and not isinstance(auxiliary_head, Mapping):
        raise SettingsError("task.ndem.auxiliary_head must be a mapping such as {width: 0.5}.")
    settings = NDeMSettings.from_mapping(section, host_keys=tuple(HOST_KEYS))
    _check_second_views(settings, second_views, auxiliary_head)
    task["ndem"] = settings.as_dict()
    if second_views is not None:
        task["ndem"][SECOND_VIEWS] = second_views
    if auxiliary_head is not None:
        auxiliary_head = dict(auxiliary_head)
        task["ndem"][AUXILIARY_HEAD] = auxiliary_head
    return TaskSection(settings, auxiliary_head, second_views)


def _check_second_views(settings: NDeMSettings, path: Any, auxiliary_head: Any) -> None:
    """A file with the target that reads it, and with no other."""
    if settings.target == "second_views" and not isinstance(path, str):
        raise SettingsError(
            "task.ndem.target = 'second_views' needs task.ndem.second_views: FILE, a file of "
            "`ndem data second-views`."
        )
    if settings.target != "second_views" and path is not None:
        raise SettingsError(
            f"task.ndem.second_views = {path!r} is read with task.ndem.target: second_views only: "
            "set it, or remove the file."
        )
    if settings.instead and auxiliary_head is not None:
        raise SettingsError(
            "task.ndem.auxiliary_head means nothing with place: instead, which trains the main "
            "heads: remove it."
        )


def check_config(config: dict[str, Any], settings: NDeMSettings) -> None:
    """Stop a run in its first second on what would stop or spoil it later.

    Raises:
        ConfigError: naming the key and the way out.
    """
    _default_primary_metric(config)
    if not settings.active:
        logging.info("task.ndem.coefficient is 0: training as the plain trainer does.")
        return
    if isinstance(config.get("outputs") or {}, Mapping):  # check_data names any other
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
    """Name an argument that the auxiliary head does not have before Python does.

    Args:
        model: the model section with its ``auxiliary_head`` and module filled in.

    Raises:
        ConfigError: naming the key and the valid ones.
    """
    given = model.get(AUXILIARY_HEAD) or {}
    if given.get("module") in (None, "shared"):
        return
    where = f"task.ndem.{AUXILIARY_HEAD}"
    raise_if_any(constructor_problems(given, where, "module", skip=("backbone",)))


def check_data(config: dict[str, Any], settings: NDeMSettings) -> None:
    """Stop a run that will read data on every key that nobody reads and on data that is not there.

    Nothing has been built yet. All mistakes are in one message.

    Raises:
        ConfigError: naming each key, what was found there, and the way out.
    """
    command = command_config()
    old_layout = command is not None and not command.get("loss_functions")
    raise_if_any(
        [
            *(top_level_problems(command) if command is not None else ()),
            *key_problems(config, old_layout),
            *_primary_problems(config),
            *_source_problems(config, command),
            *_curvature_problems(config, settings),
        ]
    )
    raise_if_any(balancing_problems(config))
    if trains() and config["task"].get("init_from") is not None:
        check_section(config["task"]["init_from"])


def key_problems(config: Mapping[str, Any], old_layout: bool = False) -> Iterator[str]:
    """Every mistake that a trainer's configuration shows without its data, as sentences.

    Args:
        config: as fairchem's trainers keep it (``dataset``, ``val_dataset``, ``optim``, ...).
        old_layout: whether fairchem converted it from its layout without ``loss_functions``.
    """
    yield from task_problems(config.get("task"), old_layout)
    yield from switch_problems(config.get("task"))
    yield from split_problems(config)
    yield from output_problems(config)
    yield from loss_problems(config)
    yield from metric_problems(config)
    yield from optim_problems(config.get("optim"), old_layout)
    yield from optim_value_problems(config.get("optim"))
    yield from dataset_problems(config, old_layout)
    yield from model_problems(config.get("model"))
    yield from logger_problems(config.get("logger"))


def check_records(config: dict[str, Any]) -> None:
    """Compare metadata, labels and normalizers with the data; normalizers are in numbers by now.

    Rank 0 reads, and all ranks stop together or go on together.

    Raises:
        ConfigError: naming the key, both values, and what to write.
    """
    raise_if_any(rank_zero_finds(lambda: record_problems(config, trains())))


def trains() -> bool:
    """Whether this process is to train: not a ``fairchem`` command of another mode."""
    command = command_config()
    return command is None or command.get("mode", "train") == "train"


def _source_problems(config: Mapping[str, Any], command: Mapping[str, Any] | None) -> Iterator[str]:
    """Data paths that are not there."""
    given = {f"dataset.{key}.src": _mapping(config.get(name)) for name, key in SPLITS.items()}
    for name, value in _mapping(_mapping(config.get("task")).get(VALIDATION_SPLITS)).items():
        given[f"task.{VALIDATION_SPLITS}.{name}"] = {"src": _mapping(value).get("src", value)}
    for key, section in given.items():
        sources = section.get("src")
        for source in sources if isinstance(sources, (list, tuple)) else [sources]:
            if isinstance(source, str) and not Path(source).exists() and "*" not in source:
                yield (
                    f"{key} = {source!r}: there is no such file or directory (from {Path.cwd()})."
                )
    trains = command is not None and command.get("mode") == "train"
    if trains and "src" not in _mapping(config.get("dataset")):
        yield "dataset.train.src is missing: there is nothing to train on."


def _curvature_problems(config: Mapping[str, Any], settings: NDeMSettings) -> Iterator[str]:
    """A normalizer that a setting needs."""
    if settings.curvature is None or FORCES in (config.get("outputs") or {}):
        return
    transforms = _mapping(_mapping(config.get("dataset")).get("transforms"))
    if FORCES not in _mapping(transforms.get("normalizer")):
        yield (
            "task.ndem.curvature is divided by rms_F, and there is neither an output 'forces' "
            "nor a normalizer for it: give dataset.train.transforms.normalizer.forces, or use "
            "task.ndem.noise_scale."
        )


def _mapping(section: Any) -> Mapping[str, Any]:
    return section if isinstance(section, Mapping) else {}


def _default_primary_metric(config: dict[str, Any]) -> None:
    """fairchem has no default for this trainer and fails without one, after loading the data."""
    metrics = config.get("evaluation_metrics") or {}
    if isinstance(metrics, Mapping) and metrics.get("primary_metric") is None:
        outputs = list(config.get("outputs") or {})
        main = FORCES if FORCES in outputs or not outputs else outputs[0]
        metrics["primary_metric"] = f"{main}_mae"
        metrics.setdefault("metrics", {name: ["mae"] for name in outputs})
        config["evaluation_metrics"] = metrics
        logging.info(f"evaluation_metrics.primary_metric is not set: using {main}_mae.")


def _primary_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """A primary metric that no validation computes."""
    from ndem_ocp.training.units import unit_metrics  # it imports this module

    if next(metric_problems(config), None) or next(output_problems(config), None):
        return  # said already, and probably why
    section = config.get("evaluation_metrics") or {}
    named = unit_metrics(config.get("outputs") or {})
    known = computed_metrics(section.get("metrics") or {}, named) | {"loss"}
    primary = section.get("primary_metric")
    if primary not in known:
        yield (
            f"evaluation_metrics.primary_metric = {primary!r} is not among the metrics that are "
            f"computed: {', '.join(sorted(known))}. {hint(primary, known)}"
        )
