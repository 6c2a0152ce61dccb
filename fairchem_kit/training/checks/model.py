"""Compare the model section with the constructors that will be called with it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from fairchem.core.common.registry import registry

from fairchem_kit.training.checks.messages import hint, is_close, shown, unknown_keys, warn


def model_problems(model: Any) -> Iterator[str]:
    """``model``, ``model.backbone`` and ``model.heads.*``."""
    if not isinstance(model, Mapping):
        yield f"model must be a mapping with name, not {shown(model)}."
        return
    yield from constructor_problems(model, "model", "name")
    if model.get("finetune_config") is not None:
        valid = ("starting_checkpoint", "override")
        yield from unknown_keys(model["finetune_config"], valid, "model.finetune_config")
        return  # backbone and heads may come from this checkpoint
    if "backbone" not in model and "heads" not in model:
        return
    yield from constructor_problems(model.get("backbone"), "model.backbone", "model")
    heads = model.get("heads")
    if not isinstance(heads, Mapping) or not heads:
        yield f"model.heads must be a mapping of names to heads, not {shown(heads)}."
        return
    for name, head in heads.items():
        yield from constructor_problems(head, f"model.heads.{name}", "module", skip=("backbone",))


def constructor_problems(
    section: Any, where: str, name_key: str, skip: tuple[str, ...] = ()
) -> Iterator[str]:
    """Check a section with the name of a class and its arguments.

    Args:
        section: the mapping. where: its dotted path.
        name_key: the key with the class's registered or dotted name.
        skip: arguments that are not in the configuration.
    """
    if not isinstance(section, Mapping):
        yield f"{where} must be a mapping with {name_key}, not {shown(section)}."
        return
    name, names = section.get(name_key), registry.mapping["model_name_mapping"]
    if not isinstance(name, str):
        yield f"{where}.{name_key} = {shown(name)}: give the name of a class. {hint(name, names)}"
        return
    try:
        cls = registry.get_model_class(name)
    except RuntimeError as error:
        why = f" ({error.__cause__})" if "." in name else ""
        yield f"{where}.{name_key} = {name!r} is not a model or head{why}. {hint(name, names)}"
        return
    parameters = inspect.signature(cls).parameters.values()
    positional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    plain = [p for p in parameters if p.kind not in positional and p.name not in skip]
    valid = [name_key, *(p.name for p in plain)]
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        for key in section:
            if key not in valid and is_close(key, valid):
                warn(f"{where}.{key}: {name} accepts any key and may ignore it. {hint(key, valid)}")
        return
    yield from unknown_keys(section, valid, where)
    for parameter in plain:
        if parameter.default is parameter.empty and parameter.name not in section:
            yield f"{where}.{parameter.name} is missing, but {name} needs it."
