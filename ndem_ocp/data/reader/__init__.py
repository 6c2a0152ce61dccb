"""Reading S2EF LMDBs for training: ``format: ndem_lmdb`` in a dataset section.

A drop-in for fairchem's ``format: lmdb`` that names what is wrong with a file or a record (or skips
and counts it), runs nothing that a record names, and works in data workers, forked or spawned.

=======================  ====================================================================
``LmdbReader``           the data set; its keys are those of ``ReaderSettings``
``loader_options``       what a torch ``DataLoader`` with workers needs besides
``limits_from_model``    ``cutoff`` and ``max_atomic_number`` of a model section
``RecordError``          a file or record that cannot be used
``load_fields``          the fields of one pickled record
``LmdbFile``, ``Keys``   the pages of a file, and the numbers of its records
=======================  ====================================================================
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "LmdbReader": "dataset",
    "RecordError": "errors",
    "Refused": "errors",
    "TooManyBadRecords": "errors",
    "Keys": "keys",
    "map_keys": "keys",
    "loader_options": "loader",
    "LmdbFile": "pages",
    "ReaderSettings": "settings",
    "limits_from_model": "settings",
    "load_fields": "unpickle",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    # when asked for: the checks of `ndem data check` share modules with the data set, both ways
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
