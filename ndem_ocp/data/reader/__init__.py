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

from ndem_ocp.lazy import lazy_names

# when asked for: the checks of `ndem data check` share modules with the data set, both ways
__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        f"{__name__}.dataset": ("LmdbReader",),
        f"{__name__}.errors": ("RecordError", "Refused", "TooManyBadRecords"),
        f"{__name__}.keys": ("Keys", "map_keys"),
        f"{__name__}.loader": ("loader_options",),
        f"{__name__}.pages": ("LmdbFile",),
        f"{__name__}.settings": ("ReaderSettings", "limits_from_model"),
        f"{__name__}.unpickle": ("load_fields",),
    },
)
