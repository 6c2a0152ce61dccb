"""The validation data of a run: path, selection and, if the files can be read, their content."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from ndem_ocp.report.provenance import data_hash

#: keys of a dataset section that select records
SELECTION = ("first_n", "sample_n", "max_atoms", "no_shuffle", "subset_to")
_HASHED_WHOLE = 2**28  # bytes that may be read for this at the start of a run


def validation_sets(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{split: its ``src`` and its selection of records}, from a run's configuration.

    Splits have the names under which they are logged. Invalid parts of the configuration are left
    out.
    """
    from ndem_ocp.training.checks.splits import extra_validation_splits  # imports fairchem

    sections = {"val": config.get("val_dataset")}
    with contextlib.suppress(AttributeError, TypeError, ValueError):
        sections |= extra_validation_splits(config)
    return {
        name: {key: section[key] for key in ("src", *SELECTION) if section.get(key) is not None}
        for name, section in sections.items()
        if isinstance(section, Mapping) and section.get("src") is not None
    }


def with_contents(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same with ``hash``, of the files' contents, and ``structures``, their number.

    Either is left out if unknown.
    """
    return {name: {**one, **_content(one["src"])} for name, one in sets.items()}


def _content(src: Any) -> dict[str, Any]:
    import numpy as np

    found: dict[str, Any] = {}
    with contextlib.suppress(OSError, TypeError, KeyError, ValueError, EOFError, BadZipFile):
        path = Path(src)
        digest = data_hash(path, _HASHED_WHOLE)
        found |= {} if digest is None else {"hash": digest}
        folder = path if path.is_dir() else path.parent
        with np.load(folder / "metadata.npz", allow_pickle=False) as metadata:
            found["structures"] = len(metadata["natoms"])
    return found
