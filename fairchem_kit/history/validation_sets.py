"""The validation data of a run: path, selection and, if the files can be read, their content."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairchem_kit.npz import DAMAGED
from fairchem_kit.provenance import data_hash

KEY = "validation_splits"  # of the section task
#: keys of a dataset section that select records
SELECTION = ("first_n", "sample_n", "max_atoms", "no_shuffle", "subset_to")
_HASHED_WHOLE = 2**28  # bytes that may be read for this at the start of a run


def validation_sets(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{split: its ``src`` and its selection of records}, from a run's configuration.

    Splits have the names under which they are logged. Invalid parts of the configuration are left
    out.
    """
    sections = {"val": config.get("val_dataset")}
    with contextlib.suppress(AttributeError, TypeError, ValueError):
        sections |= extra_validation_splits(config)
    return {
        name: {key: section[key] for key in ("src", *SELECTION) if section.get(key) is not None}
        for name, section in sections.items()
        if isinstance(section, Mapping) and section.get("src") is not None
    }


def extra_validation_splits(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{name in the log: dataset section} of ``task.validation_splits``, in its order.

    A section is ``dataset.val`` (joined with ``dataset.train`` as in fairchem), overridden by the
    split's own keys. The metadata and the selection of frames of the main split are left out.
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


def log_name(key: str) -> str:
    """The name that a split is logged under: ood_ads and val_ood_ads -> val_ood_ads."""
    return key if key.startswith("val") else f"val_{key}"


def with_contents(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same with ``hash``, of the files' contents, and ``structures``, their number.

    Either is left out if unknown.
    """
    return {name: {**one, **_content(one["src"])} for name, one in sets.items()}


def _content(src: Any) -> dict[str, Any]:
    import numpy as np

    found: dict[str, Any] = {}
    with contextlib.suppress(TypeError, KeyError, *DAMAGED):
        path = Path(src)
        digest = data_hash(path, _HASHED_WHOLE)
        found |= {} if digest is None else {"hash": digest}
        folder = path if path.is_dir() else path.parent
        with np.load(folder / "metadata.npz", allow_pickle=False) as metadata:
            found["structures"] = len(metadata["natoms"])
    return found
