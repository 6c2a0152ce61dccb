"""Check a configuration before anything expensive is built."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fairchem_kit.history.validation_sets import KEY as VALIDATION_SPLITS
from fairchem_kit.training.checks.command import command_config, rank_zero_finds, top_level_problems
from fairchem_kit.training.checks.data import balancing_problems, record_problems
from fairchem_kit.training.checks.labels import switch_problems
from fairchem_kit.training.checks.messages import ConfigError, hint, raise_if_any
from fairchem_kit.training.checks.metrics import computed_metrics, loss_problems, metric_problems
from fairchem_kit.training.checks.model import model_problems
from fairchem_kit.training.checks.sections import (
    SPLITS,
    dataset_problems,
    logger_problems,
    optim_problems,
    output_problems,
    task_problems,
)
from fairchem_kit.training.checks.splits import split_problems
from fairchem_kit.training.checks.values import optim_value_problems, selection_problems
from fairchem_kit.training.component import Component
from fairchem_kit.units.metrics import unit_metrics

__all__ = ["FORCES", "ConfigError", "Keys", "check_data", "check_records", "key_problems", "trains"]
FORCES = "forces"


class Keys(Component):
    """Checks the configuration before anything is built and reports all mistakes together."""

    def read(self) -> None:
        task = self.config["task"] = self.config.get("task") or {}
        if not isinstance(task, Mapping):
            raise ConfigError(f"task must be a mapping of keys to values, not {task!r}.")
        default_primary_metric(self.config)

    def prepare(self, inference_only: bool) -> None:
        if not inference_only:
            components = self.trainer.components
            task_keys = [key for each in components for key in each.task_keys]
            more = [problem for each in components for problem in each.problems()]
            check_data(self.config, task_keys, more)


def check_data(
    config: dict[str, Any], task_keys: Iterable[str] = (), more: Iterable[str] = ()
) -> None:
    """Refuse unknown keys, and paths of data that do not exist, before anything is built.

    All mistakes are reported in one message, together with those in ``more``.

    Raises:
        ConfigError: naming each key, its value, and what to write instead.
    """
    command = command_config()
    old_layout = command is not None and not command.get("loss_functions")
    raise_if_any(
        [
            *(top_level_problems(command) if command is not None else ()),
            *key_problems(config, old_layout, task_keys),
            *_primary_problems(config),
            *_source_problems(config, command),
            *more,
        ]
    )
    raise_if_any(balancing_problems(config))


def key_problems(
    config: Mapping[str, Any], old_layout: bool = False, task_keys: Iterable[str] = ()
) -> Iterator[str]:
    """All mistakes in a trainer's configuration that can be found without the data, as sentences.

    Args:
        config: as in fairchem's trainers (``dataset``, ``val_dataset``, ``optim``, ...).
        old_layout: whether fairchem converted it from its older layout, without ``loss_functions``.
        task_keys: keys of ``task`` that the trainer's components read, in addition to fairchem's.
    """
    yield from task_problems(config.get("task"), old_layout, task_keys)
    yield from switch_problems(config.get("task"))
    yield from split_problems(config)
    yield from output_problems(config)
    yield from loss_problems(config)
    yield from metric_problems(config)
    yield from optim_problems(config.get("optim"), old_layout)
    yield from optim_value_problems(config.get("optim"))
    yield from dataset_problems(config, old_layout)
    yield from selection_problems(config)
    yield from model_problems(config.get("model"))
    yield from logger_problems(config.get("logger"))


def check_records(config: dict[str, Any]) -> None:
    """Compare metadata, labels and normalizers (already numbers) with the data.

    Rank 0 reads the data; all ranks stop or continue together.

    Raises:
        ConfigError: naming the key, both values, and what to write instead.
    """
    raise_if_any(rank_zero_finds(lambda: record_problems(config, trains())))


def trains() -> bool:
    """Whether this process trains; False in a ``fairchem`` command with another mode."""
    command = command_config()
    return command is None or command.get("mode", "train") == "train"


def _source_problems(config: Mapping[str, Any], command: Mapping[str, Any] | None) -> Iterator[str]:
    """Paths of data that do not exist."""
    given = {f"dataset.{key}.src": _mapping(config.get(name)) for name, key in SPLITS.items()}
    for name, value in _mapping(_mapping(config.get("task")).get(VALIDATION_SPLITS)).items():
        given[f"task.{VALIDATION_SPLITS}.{name}"] = {"src": _mapping(value).get("src", value)}
    for key, section in given.items():
        sources = section.get("src")
        for source in sources if isinstance(sources, (list, tuple)) else [sources]:
            if "src" in section and not isinstance(source, (str, Path)):
                yield f"{key} must be a path, or a list of paths, not {source!r}."
            if isinstance(source, str) and not Path(source).exists() and "*" not in source:
                yield (
                    f"{key} = {source!r}: there is no such file or directory (from {Path.cwd()})."
                )
    asked_to_train = command is not None and command.get("mode") == "train"
    if asked_to_train and "src" not in _mapping(config.get("dataset")):
        yield "dataset.train.src is missing: there is no training data."


def _mapping(section: Any) -> Mapping[str, Any]:
    return section if isinstance(section, Mapping) else {}


def default_primary_metric(config: dict[str, Any]) -> None:
    """Set a default; without one fairchem fails with this trainer, after loading the data."""
    metrics = config.get("evaluation_metrics") or {}
    if isinstance(metrics, Mapping) and metrics.get("primary_metric") is None:
        outputs = list(config.get("outputs") or {})
        main = FORCES if FORCES in outputs or not outputs else outputs[0]
        metrics["primary_metric"] = f"{main}_mae"
        metrics.setdefault("metrics", {name: ["mae"] for name in outputs})
        config["evaluation_metrics"] = metrics
        logging.info(f"evaluation_metrics.primary_metric is not set: using {main}_mae.")


def _primary_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """A primary metric that is not computed in validation."""
    if next(metric_problems(config), None) or next(output_problems(config), None):
        return  # has been reported already, probably with the reason
    section = config.get("evaluation_metrics") or {}
    named = unit_metrics(config.get("outputs") or {})
    known = computed_metrics(section.get("metrics") or {}, named) | {"loss"}
    primary = section.get("primary_metric")
    if primary not in known:
        yield (
            f"evaluation_metrics.primary_metric = {primary!r} is not among the metrics that are "
            f"computed: {', '.join(sorted(known))}. {hint(primary, known)}"
        )
