"""Small runs in this process: a data set, a configuration, a trainer, training steps."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from fairchem.core.datasets import create_dataset
from torch_geometric.data import Data

from fairchem_kit.data.demo import make_demo
from fairchem_kit.training import build

KEYS = {"y": "energy", "force": "forces"}
TRAINER = "ndem_ocp.NDeMTrainer"
# fairchem's own trainer with the same schedule, which NDeM with coefficient 0 must equal.
PLAIN_TRAINER = "equiformerv2_forces"


def small_data(folder: Path) -> Path:
    """Make the small generated data set (train, val_id, val_ood; a few seconds) in ``folder``, if
    absent."""
    out = folder / "ndem-small"
    if not out.exists():
        make_demo(out, size="small", progress=False)
    return out


def frames(data: Path, split: str = "train") -> list[Data]:
    """All frames of a split, in order."""
    dataset = create_dataset(
        {"src": str(data / split), "format": "lmdb", "key_mapping": KEYS}, "train"
    )
    return [dataset[i] for i in range(len(dataset))]


def run_config(
    model: dict[str, Any], data: Path, learning_rate: float = 0.005, **ndem: Any
) -> dict[str, Any]:
    """A complete fairchem configuration for a hydra model on data from :func:`small_data`.

    Args:
        model: the ``model`` section; its force output is ``forces``.
        data: folder with ``train`` and ``val_id``.
        learning_rate: of AdamW.
        **ndem: settings of ``task.ndem``.
    """
    forces = {"property": "forces", "level": "atom"}
    source = {"format": "ndem_lmdb", "key_mapping": KEYS}
    # The same scale for both, as needed if forces are gradients of the energy.
    normalizer = {name: {"mean": 0.0, "stdev": 0.7} for name in ("energy", "forces")}
    return {
        "trainer": TRAINER,
        "model": copy.deepcopy(model),
        "task": {"ndem": {"coefficient": 1.0, **ndem}},
        "dataset": {
            "train": {
                **source,
                "src": str(data / "train"),
                "transforms": {"normalizer": normalizer},
            },
            "val": {**source, "src": str(data / "val_id")},
        },
        "outputs": {
            "energy": {"property": "energy", "level": "system"},
            "forces": {**forces, "train_on_free_atoms": True, "eval_on_free_atoms": True},
        },
        "loss_functions": [
            {"energy": {"fn": "mae", "coefficient": 1}},
            {"forces": {"fn": "l2mae", "coefficient": 10}},
        ],
        "evaluation_metrics": {
            "primary_metric": "forces_mae",
            "metrics": {"energy": ["mae"], "forces": ["mae"]},
        },
        "logger": {"name": "ndem_ocp.HistoryLogger", "inner": None},
        "optim": {
            "batch_size": 2,
            "eval_batch_size": 8,
            "load_balancing": None,
            "num_workers": 0,
            "optimizer": "AdamW",
            "optimizer_params": {"weight_decay": 0.0},
            "lr_initial": learning_rate,
            "max_epochs": 100,
            "eval_every": 100000,
            "clip_grad_norm": 10.0,
            "ema_decay": 0.9,
            "scheduler": "LambdaLR",
            "scheduler_params": {
                "lambda_type": "cosine",
                "warmup_epochs": 0.1,
                "warmup_factor": 0.2,
                "lr_min_factor": 0.1,
            },
        },
    }


def trainer_of(
    config: dict[str, Any],
    run_dir: Path,
    name: str | None = None,
    seed: int = 0,
    run_id: str | None = None,
    **options: Any,
) -> Any:
    """A trainer as built by fairchem's command line, in this process, without ranks.

    Args:
        config: a complete configuration.
        run_dir: checkpoints and logs are written here.
        name: a trainer other than the configuration's.
        seed: of the run.
        run_id: fairchem's ``--timestamp-id``, the run's name below ``run_dir``.
        **options: further arguments of the trainer: cpu (True by default), amp, is_debug.
    """
    return build.trainer_of(
        {**config, "trainer": name or config["trainer"]},
        identifier="test",
        timestamp_id=run_id,
        run_dir=str(run_dir),
        print_every=1000,
        seed=seed,
        **{"cpu": True, **options},
    )


def steps(trainer: Any, count: int) -> list[float]:
    """Run ``count`` training steps of fairchem's own loop; returns the loss of each."""
    losses: list[float] = []
    compute = trainer._compute_loss

    def recording(out: dict[str, torch.Tensor], batch: Any) -> torch.Tensor:
        loss = compute(out, batch)
        losses.append(loss.item())
        if len(losses) == count + 1:
            raise _Enough
        return loss

    trainer._compute_loss = recording
    try:
        trainer.train(disable_eval_tqdm=True)
    except _Enough:
        losses.pop()
    finally:
        trainer._compute_loss = compute
    return losses


class _Enough(Exception):
    pass
