"""Loading a checkpoint for prediction: fairchem's trainer without data, with the chosen weights.

The checkpoint contains its configuration, so no other file is needed. Checkpoints of this package
and of fairchem 1.10's own trainers work, with a model section of either layout.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common.utils import update_config
from fairchem.core.modules.scaling.util import ensure_fitted
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_kit.checkpoints import CheckpointError, read_checkpoint
from fairchem_kit.checkpoints.config import building, check_config
from fairchem_kit.errors import ConfigError
from fairchem_kit.evaluation.errors import EvaluationError
from fairchem_kit.evaluation.ranks import Rank
from fairchem_kit.inference.weights import AUTO, chosen_weights
from fairchem_kit.training.amp import MixedPrecision
from fairchem_kit.training.no_free_atoms import NoFreeAtoms
from fairchem_kit.training.trainer import Trainer
from fairchem_kit.units.columns import data_unit
from fairchem_kit.units.conversion import conversion


class Predictor(Trainer):
    """fairchem's trainer for prediction and metrics alone."""

    kinds = (MixedPrecision, NoFreeAtoms)


@dataclass(frozen=True)
class LoadedModel:
    """A trained model, ready to predict.

    Attributes:
        trainer: fairchem's trainer with the model; its metrics also work if no atom is free.
        config: the configuration in the checkpoint, in fairchem's current layout.
        path: the checkpoint. step, epoch: of the checkpoint; None if unknown.
        weights: ``ema`` or ``last``: which of its weights the model has.
    """

    trainer: Predictor
    config: dict[str, Any]
    path: Path
    step: int | None
    epoch: float | None
    weights: str

    @property
    def outputs(self) -> dict[str, dict[str, Any]]:
        """The ``outputs`` section: name -> level, property, units."""
        return self.config["outputs"]

    def per_ev(self) -> float:
        """The unit of the model's forces, and of its energies, per eV and Angstrom.

        Raises:
            EvaluationError: it is unknown, or not the same for both.
        """
        try:
            factors = {
                conversion(unit, data_unit(name, self.outputs[name]), f"outputs.{name}.unit")
                for name, unit in (("energy", "eV"), ("forces", "eV/A"))
            }
        except ConfigError as error:
            raise EvaluationError(f"{self.path}: {error}") from error
        if len(factors) > 1:
            raise EvaluationError(
                f"{self.path}: energies are in {data_unit('energy', self.outputs['energy'])} and "
                f"forces in {data_unit('forces', self.outputs['forces'])} (outputs.X.unit), which "
                "do not go together."
            )
        return factors.pop()

    def predict(self, batch: Batch, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Predict a batch, which is moved to the model's device.

        Args:
            batch: of structures. seed: EquiformerV2 and eSCN draw each edge's frame at random,
                which changes the last digits of their predictions.

        Returns:
            the model's outputs (normalised, for fairchem's metrics), and the same in the data's
            units.
        """
        trainer = self.trainer
        gpus = [trainer.device] if trainer.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=gpus):
            torch.manual_seed(seed)
            with torch.autocast("cuda", enabled=trainer.scaler is not None):
                out = trainer._forward(batch)
            raw = {
                name: trainer._denorm_preds(name, out[name].clone(), batch) for name in self.outputs
            }
        return out, raw


def model_of(args: argparse.Namespace, rank: Rank) -> LoadedModel:
    """The model that a command's arguments name (``shared.add_common``), on the device of a rank.

    Raises:
        EvaluationError: as :func:`load_model`.
    """
    return load_model(
        args.checkpoint,
        args.weights,
        cpu=rank.cpu,
        device_number=rank.device_number,
        amp=args.amp,
        unsafe=args.unsafe,
    )


def load_model(
    path: str | Path,
    weights: str = AUTO,
    *,
    cpu: bool = False,
    device_number: int = 0,
    amp: bool = False,
    unsafe: bool = False,
) -> LoadedModel:
    """Build the model of a checkpoint.

    Args:
        path: a checkpoint of fairchem's trainers or of this package's.
        weights: ``ema`` (moving average), ``last``, or ``auto``: EMA if the file has it, as in
            ``fairchem --mode validate``.
        cpu: do not use a GPU. device_number: which GPU.
        amp: mixed precision on the GPU, of the type that the checkpoint was trained in.
        unsafe: read the file even if that runs code in it.

    Raises:
        EvaluationError: if the file cannot be read, has no configuration, or lacks these weights.
    """
    path = Path(path)
    try:
        state = read_checkpoint(path, unsafe=unsafe)
        config = _config_of(path, state)
        with building(path):
            trainer = _trainer_of(config, cpu, device_number, amp)
    except CheckpointError as error:
        raise EvaluationError(str(error)) from error
    used = _load_weights(trainer, path, state, weights)
    ensure_fitted(trainer._unwrapped_model, warn=True)
    trainer.model.eval()
    return LoadedModel(trainer, config, path, state.get("step"), state.get("epoch"), used)


def _trainer_of(config: dict[str, Any], cpu: bool, device_number: int, amp: bool) -> Predictor:
    """fairchem's trainer without data, for prediction only."""
    return Predictor(
        task=config.get("task") or {},
        model=copy.deepcopy(config["model"]),
        outputs=config["outputs"],
        dataset=[{k: v for k, v in (config.get("dataset") or {}).items() if k != "src"}],
        optimizer=config["optim"],
        loss_functions=config["loss_functions"],
        evaluation_metrics=config["evaluation_metrics"],
        identifier="evaluation",
        timestamp_id="evaluation",
        local_rank=device_number,
        is_debug=True,  # nothing is logged or saved
        cpu=cpu,
        amp=amp,
        name="ocp",
        inference_only=True,
    )


def needs_energy_and_forces(model: LoadedModel, what: str) -> None:
    """
    Raises:
        EvaluationError: if the model lacks one of them; ``what`` is what needs both.
    """
    if not {"energy", "forces"} <= set(model.outputs):
        raise EvaluationError(
            f"{model.path} predicts {', '.join(model.outputs)}: {what} needs energy and forces."
        )


def _load_weights(trainer: Predictor, path: Path, state: dict[str, Any], weights: str) -> str:
    """Load weights and normalizers into the trainer; returns which weights were loaded."""
    try:
        chosen, used = chosen_weights(state, trainer._unwrapped_model, weights, path)
    except CheckpointError as error:
        raise EvaluationError(str(error)) from error
    state = {**state, "state_dict": chosen, "ema": None}
    try:
        trainer.load_checkpoint(str(path), state, inference_only=True)
    except (RuntimeError, ValueError) as error:
        raise EvaluationError(
            f"{path}: its weights do not fit the model in its own configuration "
            f"({' '.join(str(error).split())[:200]})."
        ) from error
    return used


def _config_of(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    config = copy.deepcopy(state.get("config"))
    if not isinstance(config, dict) or not config.get("model"):
        raise EvaluationError(
            f"{path} contains no configuration, so its model is not known. Checkpoints of "
            "fairchem's trainers have one under `config`."
        )
    if "model_attributes" in config:  # before fairchem 1.0
        config["model"] = {"name": config["model"], **config.pop("model_attributes")}
    check_config(config, path)
    config.setdefault("trainer", "ocp")
    try:
        config = update_config(config)
    except (KeyError, TypeError, AttributeError, NotImplementedError) as error:
        raise EvaluationError(
            f"{path}: its configuration has no `loss_functions`, and is not complete in fairchem's "
            f"older layout either ({type(error).__name__}: {error})."
        ) from error
    missing = [key for key in ("outputs", "optim", "loss_functions") if not config.get(key)]
    if missing:
        raise EvaluationError(f"{path}: `{missing[0]}` is missing or empty in its configuration.")
    config.setdefault("evaluation_metrics", {})
    return config
