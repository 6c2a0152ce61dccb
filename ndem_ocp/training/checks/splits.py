"""``task.validation_splits``: mistakes in it, and the dataset sections that it stands for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ndem_ocp.training.checks.names import shown

KEY = "validation_splits"
_TAKEN = ("val", "val_mean")  # names of the main split and of the mean


def log_name(key: str) -> str:
    """The name that a split is logged under: ood_ads and val_ood_ads -> val_ood_ads."""
    return key if key.startswith("val") else f"val_{key}"


def split_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Every mistake in the section that shows without its data, as sentences."""
    section = (config.get("task") or {}).get(KEY)
    if section is None:
        return
    where = f"task.{KEY}"
    if not isinstance(section, Mapping):
        yield f"{where} must be a mapping such as {{ood_ads: PATH}}, not {shown(section)}."
        return
    if section and "src" not in (config.get("val_dataset") or {}):
        yield f"{where} comes beside dataset.val.src, the main split, which is missing."
    seen: dict[str, Any] = {}
    for key, value in section.items():
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z]\w*", key):
            yield f"{where}: {key!r} is not a name; use letters, digits and _, as in ood_ads."
            continue
        name = log_name(key)
        if name in _TAKEN:
            yield f"{where}.{key} would be logged as {name}, which is taken: choose another name."
        if name in seen:
            yield f"{where}: {seen[name]} and {key} would both be logged as {name}."
        seen[name] = key
        if isinstance(value, Mapping) and not isinstance(value.get("src"), str):
            yield f"{where}.{key}.src is missing: the path of its LMDBs."
        elif not isinstance(value, (str, Mapping)):
            yield f"{where}.{key} = {shown(value)}: a path, or a mapping with src."


def extra_validation_splits(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{name in the log: dataset section} of ``task.validation_splits``, in its order.

    A section is that of ``dataset.val`` (joined with ``dataset.train`` as fairchem does it) with
    the split's own keys in place of its. What belongs to the main split's data alone, its metadata
    and its selection of frames, is not passed on.
    """
    given = (config.get("task") or {}).get(KEY) or {}
    val = dict(config.get("val_dataset") or {})
    base = {**(config.get("dataset") or {}), **val} if val.get("use_train_settings", True) else val
    own = ("metadata_path", "splits", "first_n", "sample_n", "no_shuffle", "subset_to")
    base = {k: v for k, v in base.items() if k not in own and not k.endswith("_split_settings")}
    return {
        log_name(key): {**base, **({"src": value} if isinstance(value, str) else value)}
        for key, value in given.items()
    }
