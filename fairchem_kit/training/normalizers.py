"""Normalizers: read from statistics stored with the data, and checked for gradient forces."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairchem_kit.data.split_record import split_record
from fairchem_kit.data.staging import DATASET_FILE
from fairchem_kit.training.checks.messages import ConfigError
from fairchem_kit.training.component import Component
from fairchem_kit.training.config import check_records

FROM_DATA = "dataset"  # dataset.train.transforms.normalizer: dataset
KEY = "dataset.train.transforms.normalizer"
GRADIENT_HEADS = (
    "ndem_energy_gradient_head",
    "ndem_ocp.EnergyGradientHead",
    "ndem_ocp.models.EnergyGradientHead",
)
# fairchem's own heads that can return the energy's gradient as forces
HOST_GRADIENT_HEADS = (
    "dimenetplusplus_energy_and_force_head",
    "esen_mlp_efs_head",
    "gemnet_oc_energy_and_grad_force_head",
    "gemnet_t_energy_and_grad_force_head",
)


class Normalizers(Component):
    """Replaces ``normalizer: dataset`` by numbers, and compares normalizers with the data."""

    task_keys = ("normalizer_check",)

    def prepare(self, inference_only: bool) -> None:
        if not inference_only:
            resolve_normalizers(self.config)


def resolve_normalizers(config: dict[str, Any]) -> None:
    """Replace ``normalizer: dataset`` by numbers, in place, and pass them to gradient heads.

    The numbers are the training split's statistics in ``dataset.json``, which ``ndem data ase``,
    ``md17`` or ``qm9`` writes: mean and standard deviation of each output per structure, and the
    rms of the force components (rms_F of Eq. 10). They are stored in the run's configuration and
    checkpoints.

    Then normalizers, metadata and labels are compared with some records of the data.

    Raises:
        ConfigError: if the file is missing or lacks an output, if energy and gradient forces are
            normalised differently, or if the data differs by orders of magnitude.
    """
    dataset = config.get("dataset") or {}
    transforms = dataset.get("transforms") or {}
    if transforms.get("normalizer") == FROM_DATA:
        transforms["normalizer"] = _from_data(dataset.get("src"), list(config.get("outputs") or {}))
        logging.info(f"{KEY}: {transforms['normalizer']}")
    check_records(config)
    _agree_with_gradients(config.get("model") or {}, transforms.get("normalizer") or {})


def _from_data(source: Any, outputs: list[str]) -> dict[str, dict[str, float]]:
    split = Path(source[0] if isinstance(source, list) else source)
    path = split.parent / DATASET_FILE
    statistics = split_record(split).statistics
    if statistics is None:
        raise ConfigError(
            f"{KEY}: dataset needs the statistics of {split.name!r} in {path}, but there are none. "
            "`ndem data ase`, `md17` and `qm9` write them. For other data, copy the numbers "
            f"that `ndem data check` prints into {KEY}."
        )
    return {name: _of_output(name, statistics, path) for name in outputs}


def _of_output(name: str, statistics: Mapping[str, Any], path: Path) -> dict[str, float]:
    targets = statistics.get("targets") or {}
    if name in targets:
        mean, stdev = targets[name]
        return {"mean": mean, "rmsd": stdev}
    if name == "forces" and statistics.get("force_rms"):
        return {"mean": 0.0, "rmsd": statistics["force_rms"]}
    if name == "energy" and statistics.get("energy_stdev"):
        return {"mean": statistics["energy_mean"], "rmsd": statistics["energy_stdev"]}
    raise ConfigError(
        f"{KEY}: dataset: {path} has no statistics of the output {name!r} (it has energy and "
        f"forces{''.join(', ' + target for target in targets)})."
    )


def _agree_with_gradients(model: dict[str, Any], normalizer: dict[str, Any]) -> None:
    """F = -dE/dx holds for physical quantities; normalised ones differ by std_E / rms_F."""
    energy, forces = (_scale(normalizer.get(name)) for name in ("energy", "forces"))
    backbone = model.get("backbone") or {}
    for name, head in (model.get("heads") or {}).items():
        if head.get("module") in GRADIENT_HEADS and "force_scale" not in head:
            if (energy is None) != (forces is None) or "fit" in normalizer or "file" in normalizer:
                raise ConfigError(
                    f"model.heads.{name} returns the energy's gradient as forces and needs both "
                    f"normalizers as numbers: set energy and forces in {KEY} (or neither), or "
                    f"model.heads.{name}.force_scale = std_E / rms_F."
                )
            if energy is not None:
                head["force_scale"] = energy / forces
        host = head.get("module") in HOST_GRADIENT_HEADS and not backbone.get("direct_forces")
        if host and energy != forces:
            raise ConfigError(
                f"model.heads.{name} ({head['module']}) returns the energy's gradient as forces, "
                f"so both must be normalised alike: {KEY}.energy has {energy}, forces {forces}. "
                "Give both the same rmsd."
            )


def _scale(normalizer: dict[str, Any] | None) -> float | None:
    if not normalizer:
        return None
    return normalizer.get("rmsd", normalizer.get("stdev"))
