"""What a trainer is not told: the whole configuration of the command, and its mode."""

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

    fairchem hands a trainer its known sections only, so ``evaluation_metric:`` or ``dataset.trian``
    never arrive. The function that builds the trainer has them, and is among the callers.
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
        del frame  # a frame that holds itself would keep everything it sees alive


def top_level_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Top-level keys, names of datasets. A key that resembles none may be an anchor: a warning."""
    options = [option.dest for option in flags.get_parser()._actions]
    for key, value in config.items():
        if key in known_keys.TOP:
            continue
        if is_close(key, [*known_keys.TOP, *options]):
            yield (
                f"{key} = {shown(value)} at the top level: there is no such key, and nothing "
                f"would read it. {hint(key, [*known_keys.TOP, *options])} Rename it or take it out."
            )
        else:
            warn(f"{key} at the top level of the configuration: nothing reads it.")
    datasets = config.get("dataset")
    if isinstance(datasets, Mapping) and "src" not in datasets:
        yield from unknown_keys(datasets, known_keys.DATASETS, "dataset")


def rank_zero_finds(check: Callable[[], list[str]]) -> list[str]:
    """The sentences that ``check`` gives on rank 0, on every rank: all continue, or all stop."""
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
