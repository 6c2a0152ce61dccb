"""Mistakes in ``task.validation_splits``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fairchem_kit.history.validation_sets import KEY, log_name
from fairchem_kit.training.checks.messages import shown

_TAKEN = ("val", "val_mean")  # names that the main split and the mean use


def split_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """All mistakes in the section that can be found without the data, as sentences."""
    section = (config.get("task") or {}).get(KEY)
    if section is None:
        return
    where = f"task.{KEY}"
    if not isinstance(section, Mapping):
        yield f"{where} must be a mapping such as {{ood_ads: PATH}}, not {shown(section)}."
        return
    if section and "src" not in (config.get("val_dataset") or {}):
        yield f"{where} needs a main split as well, but dataset.val.src is missing."
    seen: dict[str, Any] = {}
    for key, value in section.items():
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z]\w*", key):
            yield f"{where}: {key!r} is not a valid name; use letters, digits and _, as in ood_ads."
            continue
        name = log_name(key)
        if name in _TAKEN:
            yield f"{where}.{key} would be logged as {name}, which is taken: choose another name."
        if name in seen:
            yield f"{where}: {seen[name]} and {key} would both be logged as {name}."
        seen[name] = key
        if isinstance(value, Mapping) and not isinstance(value.get("src"), str):
            yield f"{where}.{key}.src is missing: give the path of its LMDBs."
        elif not isinstance(value, (str, Mapping)):
            yield f"{where}.{key} = {shown(value)}: must be a path, or a mapping with src."
