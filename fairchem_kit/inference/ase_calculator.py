"""The ASE calculator for a checkpoint: fairchem's OCPCalculator without its pitfalls.

fairchem's also reads any checkpoint of this package. This one differs in these points:

- the weights are the moving average, as in validation, and not those of the last step;
- energies are in eV and forces in eV/A, whatever unit the model was trained in
  (``outputs.*.unit``);
- energies are in float64: in float32 a molecule's total energy has a resolution of about 1 meV;
- the energy reference that ``ndem fit`` subtracted (``energy_reference`` in the file) is added
  back;
- the same structure gives the same numbers; the caller's random state and logging are unchanged;
- structures for which the model is meaningless are refused with a clear message.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from fairchem.core.common.relaxation.ase_utils import OCPCalculator
from fairchem.core.common.utils import update_config

from fairchem_kit.checkpoints import CheckpointError, read_checkpoint
from fairchem_kit.checkpoints.config import building, check_config
from fairchem_kit.data.positions import FAR, near_origin
from fairchem_kit.inference.process import unchanged_process
from fairchem_kit.inference.structures import CalculatorError, StructureLimits
from fairchem_kit.inference.weights import AUTO, chosen_weights, plain_normalizers
from fairchem_kit.training.config import ConfigError
from fairchem_kit.units.conversion import conversion
from fairchem_kit.words import counted

__all__ = ["CalculatorError", "NDeMCalculator", "calculator"]
ENERGY, FORCES = "energy", "forces"
EV = {ENERGY: "eV", FORCES: "eV/A"}
SEED = 0  # for the edge frames that EquiformerV2 draws in every forward pass
_STRESS = ("stress", "stresses", "virial", "virials")


def calculator(
    checkpoint: str | Path,
    device: str | None = None,
    weights: str = AUTO,
    units: Mapping[str, str] | None = None,
    unsafe: bool = False,
) -> NDeMCalculator:
    """An ASE calculator for a checkpoint of this package or of fairchem 1.10.

    Args:
        checkpoint: a file such as ``checkpoints/RUN/best_checkpoint.pt``.
        device: "cpu", "cuda", "cuda:1"; None: a GPU if there is one.
        weights: "ema", the moving average, which validation uses; "last", those of the last step;
            "auto": the average if the file has one.
        units: {"energy": ..., "forces": ...} of the model, if the checkpoint has no
            ``outputs.*.unit``; eV, meV, kcal/mol, kJ/mol or Ha for energies, the same per A for
            forces.
        unsafe: read the file even if that runs code in it; only for files whose author you trust.

    Raises:
        CheckpointError: if the file cannot be read or does not have these weights.
        CalculatorError: if the model has no energy output, its unit is not an energy unit, or the
            device does not exist.
    """
    return NDeMCalculator(checkpoint, device, weights, units, unsafe)


class NDeMCalculator(OCPCalculator):
    """Energy in eV and forces in eV/A from a checkpoint; created by :func:`calculator`.

    Forces are of all atoms; ASE applies constraints. The auxiliary head does not run.

    Attributes:
        weights: "ema" or "last", the weights in use.
        implemented_properties: energy, free_energy (the same), forces if the model has them.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        device: str | None = None,
        weights: str = AUTO,
        units: Mapping[str, str] | None = None,
        unsafe: bool = False,
    ) -> None:
        self._path, self._asked = Path(checkpoint), weights
        self._device = _device(device)
        self._content = read_checkpoint(self._path, unsafe=unsafe)
        with unchanged_process(self._device):
            config = _config(self._content, self._path, self._device)
            outputs = [name for name in (ENERGY, FORCES) if name in config["outputs"]]
            self._to_ev = _factors(config["outputs"], outputs, units, self._path)
            with building(self._path):
                super().__init__(
                    config_yml=config,
                    checkpoint_path=self._path,
                    # a run of fairchem's equiformerv2_forces is saved as "s2ef", which is not a
                    # trainer
                    trainer="ocp",
                    cpu=self._device.type == "cpu",
                    seed=SEED,
                    only_output=outputs,
                )
        self.implemented_properties = [*outputs, "free_energy"]
        self._limits = StructureLimits.of(
            self.trainer._unwrapped_model, config["model"], self._content.get("elements")
        )
        reference = self._content.get("energy_reference")
        self._reference = None if reference is None else np.asarray(reference, dtype=np.float64)
        del self._content  # optimizer and all

    def load_checkpoint(self, checkpoint_path: Any, checkpoint: dict | None = None) -> None:
        """fairchem's, with the requested weights and float64 denormalisation."""
        model = self.trainer._unwrapped_model
        state, self.weights = chosen_weights(self._content, model, self._asked, self._path)
        normalizers = plain_normalizers(self._content)
        content = {**self._content, "state_dict": state, "ema": None, "normalizers": normalizers}
        super().load_checkpoint(checkpoint_path, content)
        for normalizer in self.trainer.normalizers.values():
            normalizer.double()

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True):
        """ASE's, with a clear error for properties that the model does not have."""
        if name in _STRESS:
            raise PropertyNotImplementedError(
                f"{self._path} has no {name}: models of S2EF data are trained on energies and "
                "forces, not stress. Relax positions only (no cell filter, no NPT)."
            )
        if name == FORCES and name not in self.implemented_properties:
            raise PropertyNotImplementedError(
                f"{self._path} predicts no forces (its outputs: {', '.join(self._to_ev)})."
            )
        return super().get_property(name, atoms, allow_calculation)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Any = (ENERGY,),
        system_changes: Any = tuple(all_changes),
    ) -> None:
        """Energy and forces of one structure.

        Raises:
            CalculatorError: for a structure that the model cannot predict, or a prediction that is
                not finite.
        """
        atoms = self.atoms if atoms is None else atoms
        self._limits.check(atoms)
        cuda = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(SEED)
            super().calculate(_near(atoms), properties, system_changes)
        self.atoms = atoms.copy()  # the structure of these results, for ASE
        for name, factor in self._to_ev.items():
            value = np.asarray(self.results[name], dtype=np.float64) * factor
            if not np.isfinite(value).all():
                self.results = {}
                raise CalculatorError(
                    f"The model's {name} are not finite for this structure. Do atoms overlap, "
                    "or has an MD run become unstable? Look at the last structures."
                )
            self.results[name] = float(value) if name == ENERGY else value.reshape(len(atoms), 3)
        if self._reference is not None:
            self.results[ENERGY] += float(self._reference[atoms.numbers].sum())
        self.results["free_energy"] = self.results[ENERGY]


def _near(atoms: Atoms) -> Atoms:
    """The same structure, moved near the origin so that float32 resolves its bonds. fairchem wraps
    in periodic directions, but not a molecule, or a slab along its normal."""
    if np.abs(atoms.positions).max() <= FAR or atoms.pbc.all():
        return atoms
    near = atoms.copy()
    cell = np.asarray(atoms.get_cell(complete=True))
    near.positions = near_origin(atoms.positions, cell, np.asarray(atoms.pbc))
    return near


def _device(device: str | None) -> torch.device:
    if device is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise CalculatorError(f"device = {device!r}: cpu, cuda, cuda:N, or None for a GPU if any.")
    if found.type == "cpu":
        return found
    found = torch.device("cuda", found.index or 0)
    if found.index >= torch.cuda.device_count():
        raise CalculatorError(
            f"device = {device!r}: torch sees {counted(torch.cuda.device_count(), 'GPU')} here. "
            "Use cpu; `ndem doctor` may show why."
        )
    return found


def _config(content: Mapping[str, Any], path: Path, device: torch.device) -> dict[str, Any]:
    """The checkpoint's configuration, as OCPCalculator reads it from a file.

    Raises:
        CheckpointError: if there is none.
    """
    config = copy.deepcopy(content.get("config"))
    if not isinstance(config, Mapping) or "model" not in config:
        raise CheckpointError(f"{path} contains no configuration, so its model is not known.")
    config = dict(config)
    check_config(config, path)
    if "model_attributes" in config:  # fairchem's layout before 1.0
        config["model"] = {"name": config.pop("model"), **config.pop("model_attributes")}
    dataset = config.get("dataset") or {}
    dataset = dict(dataset[0] if isinstance(dataset, (list, tuple)) else dataset)
    config["dataset"] = dataset.get("train") or dataset
    config = update_config(config)
    # OCPCalculator uses the train section, and deletes its source.
    config["dataset"] = {"train": {"src": "", **config["dataset"]}}
    config["local_rank"] = device.index or 0
    if ENERGY not in config["outputs"]:
        raise CalculatorError(
            f"{path} has no output {ENERGY!r} (its outputs: {', '.join(config['outputs'])}), and a "
            "calculator needs one. To predict with this model use fairchem --mode predict."
        )
    return config


def _factors(
    outputs: Mapping[str, Any],
    names: list[str],
    given: Mapping[str, str] | None,
    path: Path,
) -> dict[str, float]:
    """{output: factor to eV or eV/A}.

    Raises:
        CalculatorError: naming an output whose unit is not known.
    """
    given = dict(given or {})
    unknown = sorted(set(given) - set(EV))
    if unknown:
        raise CalculatorError(f"units: {unknown[0]!r} is not known; valid: energy, forces.")
    units = {name: given.get(name, outputs[name].get("unit")) for name in names}
    if len(names) > 1 and (units[ENERGY] is None) != (units[FORCES] is None):
        says, lacks = (ENERGY, FORCES) if units[FORCES] is None else (FORCES, ENERGY)
        raise CalculatorError(
            f"{path} says that {says} are in {units[says]} (outputs.{says}.unit) but has no unit "
            f"for {lacks}. Give both: calculator(..., units={{'energy': 'kcal/mol', 'forces': "
            "'kcal/mol/A'})."
        )
    try:
        return {
            name: conversion(units[name] or EV[name], EV[name], f"outputs.{name}.unit")
            for name in names
        }
    except ConfigError as error:
        raise CalculatorError(f"{path}: {error}") from error
