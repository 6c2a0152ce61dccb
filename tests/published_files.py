"""Files in the layouts of the published EquiformerV2 checkpoints, tiny and with random weights.

None can be downloaded by a test. The networks are fairchem's own classes; what is around the
weights follows the files of fairchem's model list as far as it is known: of OC20 (before fairchem
1.0: one class, ``model_attributes``, ``target``/``grad_target``, weights behind two wrappers) and
of the hydra layout of later ones.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common.registry import registry

ENERGY, FORCES = (-0.7554450631141663, 2.887317180633545), (0.0, 2.887317180633545)
EMA_SHIFT = 0.01  # the average is the weights plus this, so that a test can tell them apart


def single_class(path: Path, backbone: dict[str, Any]) -> dict[str, Any]:
    """An OC20 file from before fairchem 1.0 at ``path``; returns what it holds."""
    attributes = {key: value for key, value in backbone.items() if key != "model"}
    torch.manual_seed(11)
    network = registry.get_model_class("equiformer_v2")(**copy.deepcopy(attributes))
    content = {
        **_training_state(network),
        "state_dict": {f"module.module.{n}": v for n, v in network.state_dict().items()},
        "normalizers": {
            "target": {"mean": torch.tensor(ENERGY[0]), "std": torch.tensor(ENERGY[1])},
            "grad_target": {"mean": torch.tensor(FORCES[0]), "std": torch.tensor(FORCES[1])},
        },
        "config": {
            **_run_of_the_authors(),
            "trainer": "s2ef",
            "task": {
                "dataset": "trajectory_lmdb_v2",
                "description": "Regressing to energies and forces for DFT trajectories",
                "type": "regression",
                "metric": "mae",
                "primary_metric": "forces_mae",
                "labels": ["potential energy"],
                "grad_input": "atomic forces",
                "train_on_free_atoms": True,
                "eval_on_free_atoms": True,
            },
            "model": "equiformer_v2",
            "model_attributes": attributes,
            "dataset": {
                "src": "/datasets/s2ef/all/train",
                "normalize_labels": True,
                "target_mean": ENERGY[0],
                "target_std": ENERGY[1],
                "grad_target_mean": FORCES[0],
                "grad_target_std": FORCES[1],
            },
            "val_dataset": {"src": "/datasets/s2ef/all/val_id_30k"},
        },
    }
    torch.save(content, path)
    return content


def hydra(path: Path, model: dict[str, Any]) -> dict[str, Any]:
    """A file of the later layout at ``path``, for a ``hydra`` model section."""
    arguments = copy.deepcopy(model)
    torch.manual_seed(12)
    network = registry.get_model_class(arguments.pop("name"))(**arguments)
    normalizers = {"energy": ENERGY, "forces": FORCES}
    content = {
        **_training_state(network),
        "state_dict": {f"module.{n}": v for n, v in network.state_dict().items()},
        "normalizers": {
            name: {"mean": torch.tensor(mean), "rmsd": torch.tensor(rmsd)}
            for name, (mean, rmsd) in normalizers.items()
        },
        "elementrefs": {},
        "config": {
            **_run_of_the_authors(),
            "trainer": "ocp",
            "task": {},
            "model": copy.deepcopy(model),
            "outputs": {
                "energy": {"property": "energy", "level": "system"},
                "forces": {
                    "property": "forces",
                    "level": "atom",
                    "train_on_free_atoms": True,
                    "eval_on_free_atoms": True,
                },
            },
            "loss_functions": [
                {"energy": {"fn": "mae", "coefficient": 4}},
                {"forces": {"fn": "l2mae", "coefficient": 100}},
            ],
            "evaluation_metrics": {"primary_metric": "forces_mae", "metrics": {"forces": ["mae"]}},
            "dataset": {
                "src": "/datasets/s2ef/all/train",
                "format": "lmdb",
                "key_mapping": {"y": "energy", "force": "forces"},
                "transforms": {
                    "normalizer": {
                        name: {"mean": mean, "stdev": rmsd}
                        for name, (mean, rmsd) in normalizers.items()
                    }
                },
            },
            "val_dataset": {"src": "/datasets/s2ef/all/val_id_30k"},
        },
    }
    torch.save(content, path)
    return content


def averages(content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The moving average of a built file by name, without wrappers."""
    state = {name.replace("module.", ""): value for name, value in content["state_dict"].items()}
    return {name: state[name] + EMA_SHIFT for name in content["trained_names"]}


def _training_state(network: torch.nn.Module) -> dict[str, Any]:
    trained = [value.detach() for value in network.parameters()]
    return {
        "epoch": 2.99,
        "step": 1_000_000,
        "optimizer": {"state": {}, "param_groups": []},
        "scheduler": {"last_epoch": 999_999},
        "val_metrics": {"forces_mae": {"metric": 0.0163, "total": 163.0, "numel": 10_000}},
        "ema": {
            "decay": 0.999,
            "num_updates": None,
            "shadow_params": [value + EMA_SHIFT for value in trained],
            "collected_params": [],
        },
        "amp": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 0},
        "best_val_metric": 0.0163,
        "primary_metric": "forces_mae",
        # for the tests alone; no published file has it
        "trained_names": [name for name, _ in network.named_parameters()],
    }


def _run_of_the_authors() -> dict[str, Any]:
    return {
        "optim": {
            "batch_size": 8,
            "eval_batch_size": 8,
            "load_balancing": "atoms",
            "num_workers": 8,
            "optimizer": "AdamW",
            "optimizer_params": {"weight_decay": 0.001},
            "lr_initial": 0.0004,
            "grad_accumulation_steps": 1,
            "energy_coefficient": 4,
            "force_coefficient": 100,
            "loss_energy": "mae",
            "loss_force": "l2mae",
            "max_epochs": 3,
            "ema_decay": 0.999,
            "eval_every": 10000,
            "clip_grad_norm": 100,
            "scheduler": "LambdaLR",
            "scheduler_params": {
                "lambda_type": "cosine",
                "warmup_factor": 0.2,
                "warmup_epochs": 3364.25,
                "lr_min_factor": 0.01,
                "epochs": 1009275,
                "lr": 0.0004,
            },
        },
        "logger": "wandb",
        "amp": True,
        "gpus": 64,
        "gp_gpus": None,
        "slurm": {"partition": "ocp", "folder": "/checkpoint/logs/1234"},
        "cmd": {
            "identifier": "31M",
            "print_every": 100,
            "seed": 1,
            "timestamp_id": "2023-05-01-00-00-00-31M",
            "commit": "abc1234",
            "checkpoint_dir": "/checkpoint/checkpoints/2023-05-01-00-00-00-31M",
            "results_dir": "/checkpoint/results/2023-05-01-00-00-00-31M",
            "logs_dir": "/checkpoint/logs/wandb/2023-05-01-00-00-00-31M",
        },
    }
