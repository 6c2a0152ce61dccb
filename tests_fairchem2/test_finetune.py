"""Fine-tuning from a checkpoint in the layout of UMA's, with create_uma_finetune_dataset's output.

The checkpoint is made here with fairchem's own classes: a mixture of experts with one head for
each data set. UMA's own is not used, and its templates are written here with the same keys.
"""

from __future__ import annotations

import logging
import shutil

import hydra as hydra_core
import pytest
import torch
import yaml
from fairchem.core._cli import get_hydra_config_from_yaml
from fairchem.core.scripts.create_uma_finetune_dataset import create_yaml
from fairchem.core.units.mlip_unit.api.inference import MLIPInferenceCheckpoint
from models import BACKBONE, EXPERTS, GRADIENT, WRAPPED
from small import CONFIGS, SAVING, run

from fairchem_kit.history.file import read_history

UNIT = "fairchem.core.units.mlip_unit.mlip_unit"
DATA_SETS = {"oc20": "oc20", "omol": "omol"}


def model_config() -> dict:
    own = {"dataset_mapping": DATA_SETS, "moe_dropout": 0.05}
    heads = {"energyandforcehead": {**WRAPPED["energyandforcehead"], "dataset_mapping": DATA_SETS}}
    return {
        "_target_": "fairchem.core.models.base.HydraModel",
        "backbone": {**BACKBONE, **EXPERTS, **GRADIENT, **own},
        "heads": heads,
        "pass_through_head_outputs": True,
        "model_id": "UMA-S-1.1",
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small checkpoint in the layout of UMA's."""
    path = tmp_path_factory.mktemp("uma") / "uma-small.pt"
    torch.manual_seed(5)
    model = hydra_core.utils.instantiate(model_config())
    averaged = torch.optim.swa_utils.AveragedModel(model)
    torch.save(
        MLIPInferenceCheckpoint(
            model_state_dict=model.state_dict(),
            ema_state_dict=averaged.state_dict(),
            model_config=model_config(),
            tasks_config=[],
        ),
        path,
    )
    return path


def loss(name: str, weight: int) -> dict:
    return {
        "_target_": "fairchem.core.modules.loss.DDPMTLoss",
        "loss_fn": {"_target_": f"fairchem.core.modules.loss.{name}"},
        "coefficient": weight,
    }


def templates(folder) -> None:
    """configs/uma/finetune of a checkout of fairchem, which the wheel does not have."""
    normalizer = {
        "_target_": "fairchem.core.modules.normalization.normalizer.Normalizer",
        "mean": 0.0,
        "rmsd": "${data.normalizer_rmsd}",
    }
    name = "${data.dataset_name}"
    common = {"_target_": f"{UNIT}.Task", "normalizer": normalizer, "datasets": [name]}
    references = {
        "_target_": "fairchem.core.modules.normalization.element_references.ElementReferences",
        "element_references": {"_target_": "torch.DoubleTensor", "_args_": ["${data.elem_refs}"]},
    }
    source = {
        "format": "ase_db",
        "a2g_args": {"r_energy": True, "r_forces": True},
        "transforms": {"common_transform": {"dataset_name": name}},
    }
    data = {
        "dataset_name": None, "elem_refs": None, "normalizer_rmsd": None,
        "train_dataset": {"splits": {"train": {"src": None}}, **source},
        "val_dataset": {"splits": {"val": {"src": None}}, **source},
        "pass_through_head_outputs": True,
        "heads": {"efs": {"module": "fairchem.core.models.uma.escn_md.MLP_EFS_Head"}},
        "tasks_list": [
            {**common, "name": "energy", "level": "system", "property": "energy",
             "loss_fn": loss("PerAtomMAELoss", 20), "out_spec": {"dim": [1], "dtype": "float32"},
             "element_references": references, "metrics": ["mae"]},
            {**common, "name": "forces", "level": "atom", "property": "forces",
             "loss_fn": loss("L2NormLoss", 2), "out_spec": {"dim": [3], "dtype": "float32"},
             "train_on_free_atoms": True, "eval_on_free_atoms": True, "metrics": ["mae"]},
        ],
    }  # fmt: skip

    def loader(name: str) -> dict:
        return {
            "_target_": "fairchem.core.components.common.dataloader_builder.get_dataloader",
            "dataset": f"${{{name}_dataset}}",
            "batch_sampler_fn": {
                "_target_": "fairchem.core.datasets.samplers.max_atom_distributed_sampler."
                "MaxAtomDistributedBatchSampler",
                "_partial_": True, "max_atoms": "${max_atoms}", "shuffle": True, "seed": 0,
            },
            "num_workers": 0,
            "collate_fn": {
                "_target_": f"{UNIT}.mt_collater_adapter", "tasks": "${data.tasks_list}",
            },
        }  # fmt: skip

    def dataset(name: str) -> dict:
        return {
            "_target_": "fairchem.core.datasets.mt_concat_dataset.create_concat_dataset",
            "dataset_configs": {"DATASET_NAME": f"${{data.{name}_dataset}}"},
            "combined_dataset_config": {"sampling": {"type": "temperature", "temperature": 1.0}},
        }

    tuning = {
        "defaults": [{"data": "placeholder"}, "_self_"],
        "job": {"device_type": "CPU", "scheduler": {"mode": "LOCAL"}, "debug": True, "seed": 0},
        "base_model_name": "", "max_atoms": 60, "steps": 2,
        "train_dataset": dataset("train"), "val_dataset": dataset("val"),
        "train_dataloader": loader("train"), "eval_dataloader": loader("val"),
        "runner": {
            "_target_": "fairchem.core.components.train.train_runner.TrainEvalRunner",
            "train_dataloader": "${train_dataloader}", "eval_dataloader": "${eval_dataloader}",
            "train_eval_unit": {
                "_target_": f"{UNIT}.MLIPTrainEvalUnit",
                "job_config": "${job}", "tasks": "${data.tasks_list}",
                "model": {
                    "_target_": f"{UNIT}.initialize_finetuning_model",
                    "checkpoint_location": "${base_model_name}",
                    "overrides": {
                        "backbone": {"otf_graph": True},
                        "pass_through_head_outputs": "${data.pass_through_head_outputs}",
                    },
                    "heads": "${data.heads}",
                },
                "optimizer_fn": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 4e-4},
                "cosine_lr_scheduler_fn": {
                    "_target_": f"{UNIT}._get_consine_lr_scheduler", "_partial_": True,
                    "warmup_factor": 0.2, "warmup_epochs": 0.01, "lr_min_factor": 0.01,
                    "epochs": None, "steps": "${steps}",
                },
            },
            "max_epochs": None, "max_steps": "${steps}", "callbacks": [],
        },
    }  # fmt: skip
    here = folder / "configs/uma/finetune"
    (here / "data").mkdir(parents=True)
    name = "data/uma_conserving_data_task_energy_force.yaml"
    (here / name).write_text(yaml.safe_dump(data, sort_keys=False))
    (here / "uma_sm_finetune_template.yaml").write_text(yaml.safe_dump(tuning, sort_keys=False))


@pytest.fixture
def tuning(demo, checkpoint, tmp_path, monkeypatch):
    """What create_uma_finetune_dataset writes, and one file of overrides beside it."""
    templates(tmp_path)
    monkeypatch.chdir(tmp_path)
    settings = yaml.safe_load((demo / "fairchem2.yaml").read_text())
    create_yaml(
        train_path=settings["train_src"], val_path=settings["val_id_src"],
        force_rms=settings["normalizer_rmsd"], linref_coeff=settings["elem_refs"],
        output_dir=tmp_path / "out", dataset_name="oc20", regression_tasks="ef",
        base_model_name=str(checkpoint),
    )  # fmt: skip
    shutil.copy(CONFIGS / "finetune.yaml", tmp_path / "out")

    def tune(*words):
        words = [f"++job.run_dir={tmp_path / 'runs'}", "+job.timestamp_id=first", *words]
        config = get_hydra_config_from_yaml(str(tmp_path / "out/finetune.yaml"), list(words))
        unit = run(config).train_eval_unit
        return unit, read_history(config.job.metadata.log_dir, "train"), config

    return tune


def test_one_file_of_overrides(tuning, checkpoint, caplog):
    caplog.set_level(logging.INFO)
    unit, lines, _ = tuning("runner.train_eval_unit.ndem.start=0.5")
    assert ["ndem_loss" in line for line in lines] == [False, True]
    assert "the main heads are new and start from random weights" in caplog.text
    assert type(unit.model.module).__name__ == "TwoViewHydra"
    old = torch.load(checkpoint, weights_only=False).model_state_dict
    new = unit.model.module.state_dict()
    same = [name for name in old if name.startswith("backbone") and name in new]
    assert len(same) > 50
    # near the checkpoint's after two small steps
    assert all(torch.allclose(old[n].float(), new[n].float(), atol=0.01) for n in same)


def test_heads_that_are_kept_are_wrapped_by_data_set(tuning, checkpoint, caplog):
    """So is the auxiliary head then; outputs and tasks have the data set's name."""
    caplog.set_level(logging.INFO)
    task = "data.tasks_list"
    words = [f"{task}.0.name=oc20_energy", f"{task}.1.name=oc20_forces"]
    mapping = "{energy: oc20_energy, forces: oc20_forces}"
    words += [f"+data.{split}_dataset.key_mapping={mapping}" for split in ("train", "val")]
    words += ["runner.train_eval_unit.model.heads=null", "runner.train_eval_unit.ndem.start=0.0"]
    unit, lines, _ = tuning(*words)
    assert all("ndem_loss" in line for line in lines)
    assert "the main heads are the checkpoint's" in caplog.text
    auxiliary = unit.model.module.output_heads["noisy_forces"].head
    assert type(auxiliary).__name__ == "DatasetSpecificMoEWrapper"
    assert auxiliary.dataset_names == ["oc20", "omol"]


def test_a_fine_tuning_resumes_without_its_checkpoint(tuning, checkpoint, tmp_path):
    moved = tmp_path / "moved.pt"
    shutil.copy(checkpoint, moved)
    unit, _, config = tuning(f"base_model_name={moved}", SAVING % 1)
    moved.unlink()
    folder = config.job.metadata.checkpoint_dir
    again = get_hydra_config_from_yaml(f"{folder}/step_1/resume.yaml", ["job.timestamp_id=again"])
    resumed = run(again).train_eval_unit
    for (name, mine), (_, other) in zip(
        unit.model.state_dict().items(), resumed.model.state_dict().items(), strict=True
    ):
        assert torch.equal(mine, other), name
