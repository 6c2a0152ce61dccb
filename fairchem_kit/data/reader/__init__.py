"""Reading S2EF LMDBs for training: ``format: ndem_lmdb`` in a dataset section.

A drop-in replacement for fairchem's ``format: lmdb`` that says what is wrong with a file or record
(or skips and counts it), never runs code in records, and works in forked or spawned data workers.

=======================  ====================================================================
``LmdbReader``           the data set; its keys are those of ``ReaderSettings``
``loader_options``       further arguments for a torch ``DataLoader`` with workers
``limits_from_model``    ``cutoff`` and ``max_atomic_number`` of a model section
``RecordError``          a file or record that cannot be used
``load_fields``          the fields of one pickled record
``LmdbFile``, ``Keys``   the pages of a file, and the numbers of its records
=======================  ====================================================================
"""

from __future__ import annotations

from fairchem_kit.lazy import lazy_names

# lazily: `ndem data check` and the data set import each other's modules
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
