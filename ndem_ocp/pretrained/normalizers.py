"""``task.init_from.normalizers: checkpoint``: train in the normalised units of loaded heads."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fairchem.core.common import distutils

from ndem_ocp.pretrained import fairchem
from ndem_ocp.pretrained.compare import normalizer_numbers
from ndem_ocp.pretrained.file import PretrainedError, existing, read_content
from ndem_ocp.pretrained.load import CHECKPOINT, init_settings

KEY = "dataset.train.transforms.normalizer"


def take_normalizers(config: dict[str, Any]) -> None:
    """Write a checkpoint's normalizers into the run's configuration, in place.

    Does nothing unless ``task.init_from.normalizers`` is ``checkpoint``. The numbers are then used
    everywhere as if they had been set in ``dataset.train.transforms.normalizer``: in gradient
    heads, in the scale of NDeM's target, and in the run's own checkpoints.

    Raises:
        PretrainedError: if the file has no normalizer for an output of the run, or has element
            references that the run lacks.
    """
    section = (config.get("task") or {}).get("init_from")
    if section is None:
        return
    settings = init_settings(section)
    if settings["normalizers"] != CHECKPOINT:
        return
    path = existing(settings["checkpoint"])
    content = read_content(path, settings["unsafe"])
    if not fairchem.is_fairchem(content):
        raise PretrainedError(
            f"task.init_from.normalizers: checkpoint needs a checkpoint of fairchem, but {path} is "
            f"not one. Set normalizers in {KEY}, in the units of the data."
        )
    transforms = config.setdefault("dataset", {}).setdefault("transforms", {})
    _need_references(content, transforms, path)
    found = normalizer_numbers(content.get("normalizers") or {})
    lacking = [name for name in config.get("outputs") or {} if found.get(name) is None]
    if lacking:
        raise PretrainedError(
            f"task.init_from.normalizers: checkpoint: {path} has no normalizer of "
            f"{', '.join(lacking)} (it has: {', '.join(found) or 'none'}). Use normalizers: run, "
            f"and set them in {KEY}."
        )
    taken = {
        name: {"mean": found[name][0], "rmsd": found[name][1]} for name in config.get("outputs", {})
    }
    transforms["normalizer"] = taken
    if distutils.is_master():
        numbers = (f"{n} mean {v['mean']:.6g} rmsd {v['rmsd']:.6g}" for n, v in taken.items())
        logging.info(f"Normalizers from {path}: {'; '.join(numbers)}")


def _need_references(content: Mapping[str, Any], transforms: Mapping[str, Any], path: Any) -> None:
    """Refuse normalizers of energies minus element references if the run has no references."""
    given = content.get("elementrefs")
    if given and not transforms.get("element_references"):
        raise PretrainedError(
            f"{path} was trained on {', '.join(given)} minus element references, but this run has "
            "none: set the same ones in dataset.train.transforms.element_references (fairchem "
            "saves them next to its checkpoints), or use normalizers: run."
        )
