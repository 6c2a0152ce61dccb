"""What kind of value each key must have: checked first, so that other code can rely on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any

from fairchem_kit.kinds import Kinds, wrong_kinds
from fairchem_kit.training.checks.messages import shown
from fairchem_kit.training.checks.sections import SPLITS

_TEXT = (str, "a name")
_TEXT_OR_NONE = ((str, NoneType), "a name, or null")
_SECTION = (Mapping, "a mapping of keys to values")
_SECTION_OR_NONE = ((Mapping, NoneType), "a mapping of keys to values, or left out")

_KINDS: Kinds = {
    "task": _SECTION_OR_NONE,
    "outputs": _SECTION_OR_NONE,
    "outputs.*": _SECTION,
    "outputs.*.unit": _TEXT_OR_NONE,
    "outputs.*.report_unit": _TEXT_OR_NONE,
    "outputs.*.decomposition": _SECTION_OR_NONE,
    "loss_functions.*": _SECTION,
    "loss_functions.*.fn": _TEXT_OR_NONE,
    "evaluation_metrics": _SECTION_OR_NONE,
    "evaluation_metrics.primary_metric": _TEXT_OR_NONE,
    "logger": ((str, Mapping), "the name of a logger, or a mapping with name"),
    "logger.name": _TEXT,
    "optim": _SECTION,
    "optim.optimizer": _TEXT,
    "optim.optimizer_params": _SECTION,
    "optim.scheduler": (str, "the name of a schedule; for none write 'Null'"),
    "optim.scheduler_params": _SECTION,
    "optim.scheduler_params.lambda_type": _TEXT,
    "dataset.*.format": _TEXT,
    "dataset.*.transforms": _SECTION,
    "dataset.*.transforms.normalizer.*": ((Mapping, str), "a mapping with mean and stdev"),
    "dataset.*.key_mapping": _SECTION_OR_NONE,
    "dataset.*.train_split_settings": _SECTION_OR_NONE,
    "dataset.*.val_split_settings": _SECTION_OR_NONE,
    "dataset.*.test_split_settings": _SECTION_OR_NONE,
}


def kind_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Values of a wrong kind, such as a number for a name.

    Args:
        config: a configuration as in its file, with train, val and others under ``dataset``.
    """
    logger, datasets = config.get("logger"), config.get("dataset")
    if isinstance(logger, Mapping) and "name" not in logger:
        yield f"logger.name is missing, only {shown(dict(logger))} is given."
    if isinstance(datasets, list | tuple):  # fairchem takes the sections in this order, too
        datasets = dict(zip(SPLITS.values(), datasets, strict=False))
        config = {**config, "dataset": datasets}
    if datasets is not None and not isinstance(datasets, Mapping):
        yield f"dataset must be a mapping with {', '.join(SPLITS.values())}, not {shown(datasets)}."
    for where, value, words in wrong_kinds(config, _KINDS):
        yield f"{where} = {shown(value)}: must be {words}."
