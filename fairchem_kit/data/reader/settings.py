"""The reader's own keys of a dataset section."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fairchem_kit.data.errors import DataError

# keys of a dataset section read by fairchem's own datasets, transforms and trainers
_HOST_KEYS = frozenset(
    """
    a2g_args ase_read_args config data2train database_name first_n format grad_target_mean
    grad_target_std include_relaxed_energy keep_in_memory key_mapping lin_ref max_atoms
    metadata_path no_shuffle normalize_labels oc20_ref otf_graph pattern prefetch_ratio r_data_keys
    r_edges r_energy r_fixed r_forces sample_n sampling seed select_args shard split splits src
    subset_to target_mean target_std test_split_settings total_shards
    train_on_oc20_total_energies train_split_settings transforms use_train_settings
    val_split_settings
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class ReaderSettings:
    """What the reader checks and how it handles faults.

    Attributes:
        on_bad_record: "raise" stops with an error; "skip" uses the next good record instead.
            max_bad_records: number of different bad records that a process skips before it stops.
            bad_records_log: file to which each skip adds a line of JSON.
        checks: "full"; "values" leaves out distances between atoms; "none" only unpickles safely.
        min_distance: A; closer atoms overlap. cutoff: A; an atom without a neighbour within it is
            isolated. Not above the model's cutoff. max_atomic_number: largest element; not above
            the model's largest embedding. max_atoms_per_graph: maximum number of atoms in a
            structure, to limit memory.
    """

    on_bad_record: str = "raise"
    max_bad_records: int = 100
    bad_records_log: str | None = None
    checks: str = "full"
    min_distance: float = 0.5
    cutoff: float = 12.0
    max_atomic_number: int = 118
    max_atoms_per_graph: int = 1000

    def __post_init__(self) -> None:
        for key, allowed in (
            ("on_bad_record", ("raise", "skip")),
            ("checks", ("full", "values", "none")),
        ):
            if getattr(self, key) not in allowed:
                raise DataError(
                    f"dataset.{key} must be one of {', '.join(allowed)}, not {getattr(self, key)!r}"
                )
        for key in ("max_bad_records", "max_atomic_number", "max_atoms_per_graph"):
            value = getattr(self, key)
            if type(value) is not int or value < (key != "max_bad_records"):
                raise DataError(f"dataset.{key} must be a whole number above 0, not {value!r}")
        for key in ("min_distance", "cutoff"):
            value = getattr(self, key)
            if type(value) not in (int, float) or not 0 <= value < 1000:
                raise DataError(f"dataset.{key} must be a length in Angstrom, not {value!r}")
        if self.min_distance >= self.cutoff:
            raise DataError("dataset.min_distance must be below dataset.cutoff")

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """The reader's own keys."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ReaderSettings:
        """The settings in a dataset section.

        Raises:
            DataError: a wrong value, or a key that looks like one of the reader's but is not.
        """
        ours = cls.keys()
        for key in config:
            if key in ours or key in _HOST_KEYS:
                continue
            close = difflib.get_close_matches(str(key), ours, n=1, cutoff=0.7)
            if close:
                raise DataError(
                    f"dataset.{key} is not a key of the reader. Did you mean {close[0]!r}? "
                    f"Valid: {', '.join(ours)}."
                )
            logging.warning(f"dataset.{key} is a key that nothing reads.")
        return cls(**{key: config[key] for key in ours if config.get(key) is not None})


def limits_from_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """``cutoff`` and ``max_atomic_number`` from a model section, for a dataset section.

    Args:
        model: a fairchem model section; it and its ``backbone`` are searched for the keys.

    Returns:
        Those of the two keys that are in the model section.
    """
    found: dict[str, Any] = {}
    for section in (model, model.get("backbone") or {}):
        for key in ("max_radius", "cutoff"):
            if type(section.get(key)) in (int, float) and section[key] > 0:
                found["cutoff"] = float(section[key])
        names = ("max_num_elements", "num_elements", "max_z")  # max_z: torchmd-net's
        elements = next((section[name] for name in names if name in section), None)
        if type(elements) is int and elements > 1:
            found["max_atomic_number"] = elements - 1  # element 0 also has an embedding
    return found
