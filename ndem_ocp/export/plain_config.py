"""Translating a checkpoint's configuration into plain fairchem's names."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fairchem.core.common.registry import registry

from fairchem_kit.checkpoints import CheckpointError
from fairchem_kit.data.reader import ReaderSettings
from fairchem_kit.training.schedule import uses_epochs
from fairchem_kit.units.metrics import unit_metrics
from ndem_ocp.models.build import TWO_VIEW_NAMES
from ndem_ocp.models.dens import DENS_BACKBONES, DENS_NAMES
from ndem_ocp.models.equiformer_names import to_upstream

DATASETS = ("dataset", "val_dataset", "test_dataset", "relax_dataset")
OUR_READERS = ("ndem_lmdb", "ndem_ocp.LmdbReader", "fairchem_kit.data.reader.dataset.LmdbReader")
OUR_TASK_KEYS = (
    *("ndem", "init_from", "freeze", "normalizer_check", "resume"),
    *("keep_checkpoints", "max_bad_steps", "early_stopping"),
    *("matmul_precision", "matmul_tolerance"),
)
OUR_MODEL_KEYS = ("auxiliary_head", "learned_curvature", "force_head")
OUR_LOSSES = ("squared_l2", "ndem_ocp.SquaredL2Loss")
OUR_LOGGERS = ("ndem_history", "ndem_ocp.HistoryLogger")
_TOLD = {ours: plain for plain, ours in DENS_BACKBONES.items()}


def plain_model(config: Mapping[str, Any], path: Path) -> Any:
    """The ``model`` section without auxiliary head, in fairchem's names.

    Args:
        config: the checkpoint's configuration. path: the file, for messages.

    Raises:
        CheckpointError: if part of the network is not in fairchem.
    """
    model = copy.deepcopy(config["model"])
    if isinstance(model, str):
        return model
    if model.get("name") in (*TWO_VIEW_NAMES, *DENS_NAMES):
        model["name"] = "hydra"
        for key in OUR_MODEL_KEYS:
            model.pop(key, None)
        backbone = model.get("backbone") or {}
        backbone["model"] = _TOLD.get(backbone.get("model"), backbone.get("model"))
    model = to_upstream(model)
    foreign = [name for name in _modules(model) if not _of_fairchem(name)]
    if foreign:
        raise CheckpointError(
            f"{path}: {foreign[0]} is not in plain fairchem, so this model cannot be loaded "
            "without this package. With it installed the checkpoint works as it is: "
            "ndem_ocp.calculator, fairchem's OCPCalculator (in the unit of the training data), and "
            "fairchem --mode validate or predict."
        )
    return model


def plain_config(config: Mapping[str, Any], model: Any) -> tuple[dict[str, Any], list[str]]:
    """A new configuration for ``model``, and a list of the changes."""
    plain, changed = copy.deepcopy(dict(config)), []
    if plain["model"] != model:
        before = plain["model"].get("name") if isinstance(plain["model"], Mapping) else None
        changed.append(f"model.name {before} -> {model['name']}, without auxiliary head")
        plain["model"] = model
    trainer = "equiformerv2_forces" if uses_epochs(plain.get("optim") or {}) else "ocp"
    changed.append(f"trainer -> {trainer}")
    plain["trainer"] = trainer
    task = plain["task"] = dict(plain.get("task") or {})
    gone = [key for key in OUR_TASK_KEYS if task.pop(key, None) is not None]
    if gone:
        changed.append(f"without {', '.join(f'task.{key}' for key in gone)}")
    for name in DATASETS:
        if _plain_reader(plain.get(name)):
            changed.append(f"{name}.format -> lmdb")
    changed += _plain_losses(plain.get("loss_functions"))
    metrics, named = plain.get("evaluation_metrics"), unit_metrics(plain.get("outputs") or {})
    if isinstance(metrics, dict) and metrics.get("primary_metric") in named:
        metrics["primary_metric"] = named[metrics["primary_metric"]][0]
        changed.append(f"primary_metric -> {metrics['primary_metric']}")
    logger = plain.get("logger")
    if isinstance(logger, dict) and logger.get("name") in OUR_LOGGERS:
        rest = {key: value for key, value in logger.items() if key not in ("name", "inner")}
        plain["logger"] = {"name": logger.get("inner") or "tensorboard", **rest}
        changed.append(f"logger -> {plain['logger']['name']}")
    elif logger in OUR_LOGGERS:
        plain["logger"] = "tensorboard"
    command = plain.get("cmd") or {}
    plain["cmd"] = {k: v for k, v in command.items() if not k.endswith("_dir")}  # paths of the run
    return plain, changed


def _plain_reader(section: Any) -> bool:
    if not isinstance(section, dict) or section.get("format") not in OUR_READERS:
        return False
    section["format"] = "lmdb"
    for key in (*ReaderSettings.keys(),):
        section.pop(key, None)
    return True


def _plain_losses(losses: Any) -> Iterator[str]:
    """Our squared L2 norm per atom is three times fairchem's mean square per component."""
    for entry in losses or ():
        for name, loss in entry.items():
            if isinstance(loss, dict) and loss.get("fn") in OUR_LOSSES:
                loss["fn"], loss["coefficient"] = "mse", 3 * loss["coefficient"]
                yield f"loss of {name}: squared_l2 -> mse, its coefficient times 3"


def _modules(model: Mapping[str, Any]) -> Iterator[str]:
    """Every class named in a model section."""
    yield model["name"]
    backbone = model.get("backbone") or {}
    if "model" in backbone:
        yield backbone["model"]
    for head in (model.get("heads") or {}).values():
        yield head["module"]


def _of_fairchem(name: str) -> bool:
    return registry.get_model_class(name).__module__.startswith("fairchem.")
