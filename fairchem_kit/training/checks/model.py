"""Compare the model section with the constructors that will be called with it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from fairchem.core.common.registry import registry

from fairchem_kit.training.checks.messages import hint, is_close, shown, unknown_keys, warn
from fairchem_kit.training.checks.values import number_problems

_NUMBER = (int, float)
_LENGTHS = ("max_radius", "cutoff")
_SHORTEST = 0.1  # A
_LARGEST = 2**31 - 1
#: annotations, the types of Python that they allow, and words for them
_PLAIN: dict[str, tuple[Any, str]] = {
    "int": (int, "a whole number"),
    "float": (_NUMBER, "a number"),
    "bool": (bool, "True or False"),
    "str": (str, "a name"),
    "list[int]": (int, "a list of whole numbers, such as [4]"),
}


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
    yield from _kind_problems(section, where, cls, plain)


def _kind_problems(
    section: Mapping[str, Any], where: str, cls: type, parameters: list[inspect.Parameter]
) -> Iterator[str]:
    """Values that are not of the annotated type; other annotations than plain ones say nothing."""
    for parameter in parameters:
        annotation = parameter.annotation
        text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        name, _, none = text.partition(" | ")
        value = section.get(parameter.name, parameter.default)
        if name not in _PLAIN or none not in ("", "None") or value is parameter.default:
            continue
        if value is None and none:
            continue
        kind, words = _PLAIN[name]
        items = value if name == "list[int]" and isinstance(value, list | tuple) else [value]
        if not all(isinstance(v, kind) and isinstance(v, bool) == (kind is bool) for v in items):
            yield f"{where}.{parameter.name} = {shown(value)}: must be {words}."
        elif kind in (int, _NUMBER):
            for item in items:
                yield from _range_problems(f"{where}.{parameter.name}", item)


def _range_problems(where: str, value: Any) -> Iterator[str]:
    """Numbers that no model takes: NaN, a cutoff of 0."""
    name = where.rpartition(".")[2]
    least = 1 if name == "max_neighbors" else _SHORTEST if name in _LENGTHS else -_LARGEST
    yield from number_problems(value, where, least, False)
    if value > _LARGEST:
        yield f"{where} = {value} must be at most {_LARGEST}."
