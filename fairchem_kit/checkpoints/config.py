"""Checking the configuration in a checkpoint, and that its model's code is installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports

from fairchem_kit import plugins
from fairchem_kit.checkpoints.file import CheckpointError
from fairchem_kit.errors import UserError

_MAPPINGS = ("model", "outputs", "optim", "task", "evaluation_metrics", "model_attributes")

OLD_TARGETS = {"target": "energy", "grad_target": "forces"}  # names before fairchem 1.0


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Check the configuration of a checkpoint before anything is built from it.

    Raises:
        CheckpointError: naming a section that is not a mapping, or a class that is not installed.
    """
    for key in _MAPPINGS:
        value = config.get(key)
        if value is not None and not isinstance(value, Mapping):
            if key == "model" and isinstance(value, str):
                continue  # fairchem's layout before 1.0
            raise CheckpointError(
                f"{path}: its configuration is damaged: {key} is a {type(value).__name__}, "
                "not a mapping."
            )
    setup_imports()
    plugins.register()
    for where, name in _classes(config["model"]):
        try:
            registry.get_model_class(name)
        except (RuntimeError, ImportError) as error:
            raise CheckpointError(
                f"{path}: its {where} is {name!r}, which is not installed here "
                f"({_why(error)}). Install the code with which it was trained, or put its "
                "folder in PYTHONPATH."
            ) from error


@contextlib.contextmanager
def building(path: Path) -> Iterator[None]:
    """Turn any error in building the model of a checkpoint into a sentence about the file.

    Raises:
        CheckpointError: for any error that is not already explained.
    """
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:  # constructors may raise anything for unsuitable values
        first = (str(error).strip().splitlines() or [""])[0][:300]
        raise CheckpointError(
            f"{path}: the model in its configuration cannot be built here "
            f"({type(error).__name__}: {first})."
        ) from error


def _classes(model: Any) -> Iterator[tuple[str, str]]:
    """(dotted key, name of a class) of every class in a model section."""
    if isinstance(model, str):
        yield "model", model
        return
    named = [("model.name", model.get("name"))]
    backbone, heads = model.get("backbone"), model.get("heads")
    if isinstance(backbone, Mapping):
        named.append(("model.backbone.model", backbone.get("model") or backbone.get("name")))
    if isinstance(heads, Mapping):
        named += [
            (f"model.heads.{key}.module", head.get("module"))
            for key, head in heads.items()
            if isinstance(head, Mapping)
        ]
    for where, name in named:
        if isinstance(name, str):
            yield where, name


def _why(error: Exception) -> str:
    """The innermost reason, which fairchem's registry wraps twice."""
    while error.__cause__ is not None:
        error = error.__cause__  # type: ignore[assignment]
    # a short name: fairchem lists all known ones
    return str(error).partition(". You may either")[0]
