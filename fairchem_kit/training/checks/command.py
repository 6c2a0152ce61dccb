"""The complete configuration of the ``fairchem`` command, which trainers do not get."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.common.flags import flags

from fairchem_kit.training.checks import known_keys
from fairchem_kit.training.checks.messages import hint, is_close, shown, unknown_keys, warn


def command_config() -> dict[str, Any] | None:
    """The configuration that the ``fairchem`` command was started with; None in other programs.

    fairchem only passes known sections to a trainer, so that misspelled ones
    (``evaluation_metric:``, ``dataset.trian``) are lost. The complete configuration is a local
    variable of a function among the callers, which builds the trainer.
    """
    frame = inspect.currentframe()
    try:
        while frame is not None:
            module = frame.f_globals.get("__name__")
            if frame.f_code.co_name == "new_trainer_context" and module == (
                "fairchem.core.common.utils"
            ):
                config = frame.f_locals.get("config")
                return config if isinstance(config, dict) else None
            frame = frame.f_back
        return None
    finally:
        del frame  # a frame that refers to itself would keep all its variables alive


def top_level_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Unknown top-level keys and names of datasets.

    A key that is not similar to a valid one may be a YAML anchor and only gives a warning.
    """
    options = [option.dest for option in flags.get_parser()._actions]
    for key, value in config.items():
        if key in known_keys.TOP:
            continue
        if is_close(key, [*known_keys.TOP, *options]):
            yield (
                f"{key} = {shown(value)} at the top level: there is no such key. "
                f"{hint(key, [*known_keys.TOP, *options])} Rename or remove it."
            )
        else:
            warn(f"{key} at the top level of the configuration is not used.")
    datasets = config.get("dataset")
    if isinstance(datasets, Mapping) and "src" not in datasets:
        yield from unknown_keys(datasets, known_keys.DATASETS, "dataset")


def rank_zero_finds(check: Callable[[], list[str]]) -> list[str]:
    """Run ``check`` on rank 0 and return its sentences on every rank, so that all ranks agree."""
    found: list[str] = []
    if distutils.is_master():
        try:
            found = check()
        except Exception as error:
            found = [f"The data could not be checked: {type(error).__name__}: {error}"]
    if distutils.initialized():
        nccl = torch.distributed.get_backend() == "nccl"
        listed = [found]
        distutils.broadcast_object_list(listed, src=0, device="cuda" if nccl else "cpu")
        found = listed[0]
    return found
