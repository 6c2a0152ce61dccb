"""Mistakes in a configuration stop the run before a model is built; the message says what to do."""

from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fairchem.core.common import distutils
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import load_config
from fairchem.core.datasets import LmdbDataset
from fairchem.core.modules.normalization.element_references import LinearReferences

from conftest import ROOT, tiny_config
from fairchem_kit.training.checks.command import command_config, rank_zero_finds, top_level_problems
from fairchem_kit.training.checks.data import (
    ALL_SHARDS,
    SHARDS,
    _open,
    _spread_records,
    _warn_about_length,
)
from fairchem_kit.training.checks.sections import reader_keys
from fairchem_kit.training.config import ConfigError
from fairchem_kit.training.config import key_problems as problems_of
from ndem_ocp.method import SettingsError
from ndem_ocp.pretrained import PretrainedError
from ndem_ocp.testing import trainer_of
from ndem_ocp.trainer import NDeMTrainer
from ranks import fork_ranks, free_port
from reliability import observed

KEPT = ("in its first seconds, before a model or data set is built", "nothing: no step was made")


@pytest.fixture
def refused(new_trainer, monkeypatch):
    """``refused(edit)``: the message of the run that a configuration stops, and its processor time
    in seconds."""

    def too_late(self):
        raise AssertionError("the model was built before the mistake was named")

    def stop(edit, error=ConfigError):
        with monkeypatch.context() as patch:
            patch.setattr(NDeMTrainer, "load_model", too_late)
            started = time.process_time()  # other programs do not stretch it
            with pytest.raises(error) as caught:
                new_trainer(edit=edit)
        return str(caught.value), time.process_time() - started

    return stop


def put(path, value):
    """An edit that sets ``value`` at a dotted path of a configuration."""

    def edit(config):
        *sections, last = (int(name) if name.isdigit() else name for name in path.split("."))
        for name in sections:
            config = config[name] if isinstance(name, int) else config.setdefault(name, {})
        config[last] = value

    return edit


def trainers_view(config):
    """A file's configuration as fairchem's trainers keep it."""
    datasets = config["dataset"]
    split = {"dataset": datasets["train"], "val_dataset": datasets.get("val", {})}
    return {**config, **split, "task": config.get("task", {})}


# (dotted path of a key nobody reads, a value, words of the message)
MISSPELT = [
    ("task.int_from", "x.pt", ["task.int_from = 'x.pt'", "'init_from'"]),
    ("task.ndm", {}, ["task.ndm", "'ndem'"]),
    ("task.keep_checkpoint", 3, ["'keep_checkpoints'"]),
    ("optim.batchsize", 4, ["optim.batchsize = 4", "'batch_size'"]),
    ("optim.lr_inital", 0.1, ["'lr_initial'"]),
    ("optim.optimizer_params.weight_deacy", 0.1, ["optim.optimizer_params", "'weight_decay'"]),
    ("optim.scheduler_params.warmup_epoch", 0.1, ["'warmup_epochs'"]),
    ("optim.zzz", 1, ["optim.zzz", "Valid: ", "max_epochs"]),
    ("dataset.train.sorce", "x", ["dataset.train.sorce = 'x'", "'src'"]),
    ("dataset.train.key_maping", {}, ["'key_mapping'"]),
    ("dataset.val.first_m", 3, ["dataset.val.first_m", "'first_n'"]),
    ("dataset.train.train_split_settings", {"firstn": 3}, ["train_split_settings", "'first_n'"]),
    ("dataset.train.transforms.normaliser", {}, ["transforms.normaliser", "'normalizer'"]),
    ("dataset.train.transforms.normalizer.force", {"mean": 0}, ["'force'", "'forces'"]),
    ("dataset.train.transforms.normalizer.forces.std", 1.0, ["forces.std", "'stdev'"]),
    ("outputs.forces.train_on_free_atom", True, ["outputs.forces", "'train_on_free_atoms'"]),
    ("outputs.energy.levle", "system", ["outputs.energy.levle", "'level'"]),
    ("loss_functions.0.energy.coeficient", 1, ["loss_functions.energy", "'coefficient'"]),
    ("evaluation_metrics.primary_metrics", "x", ["evaluation_metrics", "'primary_metric'"]),
    ("logger.projekt", "x", ["logger.projekt", "'project'"]),
    ("model.otf_grap", True, ["model.otf_grap", "'otf_graph'"]),
    ("model.backbone.max_radus", 5.0, ["model.backbone.max_radus", "'max_radius'"]),
    ("model.heads.energy.reduc", "sum", ["model.heads.energy.reduc"]),
]
# The same for a name or a value that does not exist.
WRONG = [
    ("evaluation_metrics.metrics.forces", ["maee"], ["no metric 'maee'", "'mae'"]),
    ("evaluation_metrics.metrics.misc", ["energy_forces_threshold"], ["energy_forces_within"]),
    ("evaluation_metrics.metrics.misc", ["mae"], ["metric of one output"]),
    ("evaluation_metrics.metrics.force", ["mae"], ["no output 'force'", "'forces'"]),
    ("evaluation_metrics.metrics.forces", "mae", ["must be a list", "[mae]"]),
    ("evaluation_metrics.primary_metric", "forces_maee", ["is not among", "forces_mae"]),
    ("loss_functions.0", {"enery": {"fn": "mae", "coefficient": 1}}, ["'enery'", "'energy'"]),
    ("loss_functions.0.energy.fn", "mea", ["'mea' is not a loss", "'mae'"]),
    ("loss_functions.0.energy", {"coefficient": 1}, ["energy.fn is missing"]),
    ("loss_functions.0.energy", {"fn": "mae"}, ["energy.coefficient is missing"]),
    ("loss_functions.0.energy.reduction", "mean_all", ["mean and sum"]),
    ("loss_functions.0.energy.coefficient", "4", ["must be a number"]),
    ("outputs.dipole", {"level": "system", "property": "dipole"}, ["no head 'dipole'"]),
    ("outputs.energy.level", "structure", ["'system'", "'atom'"]),
    ("optim.optimizer", "Adamw", ["torch.optim", "'AdamW'"]),
    ("optim.scheduler", "LamdaLR", ["'LambdaLR'"]),
    ("optim.load_balancing", True, ["write 'atoms'"]),
    ("logger.name", "wandbb", ["'wandb'"]),
    ("dataset.train.format", "lmbd", ["dataset.train.format", "'lmdb'"]),
    ("dataset.train.src", "no/such", ["dataset.train.src = 'no/such'"]),
    ("model.backbone.model", "equiformer_v2_bakbone", ["'equiformer_v2_backbone'"]),
    ("model.heads.energy.module", "equiformerV2_scaler_head", ["'equiformerV2_scalar_head'"]),
    ("model.heads.energy", {}, ["model.heads.energy.module"]),
    ("task.normalizer_check", "never", ["on or off"]),
]
VALUES = [
    ("optim.batch_size", "8", ["must be a whole number"]),
    ("optim.batch_size", 0, ["at least 1"]),
    ("optim.eval_batch_size", -4, ["at least 1"]),
    ("optim.num_workers", -1, ["at least 0"]),
    ("optim.eval_every", 0, ["at least 1"]),
    ("optim.checkpoint_every", 0, ["at least 1"]),
    ("optim.max_epochs", "three", ["must be a whole number"]),
    ("optim.max_epochs", 0.5, ["must be a whole number"]),
    ("optim.max_epochs", 3.0, ["must be written 3"]),
    ("optim.lr_initial", "4e-4", ["YAML", "0.0004"]),
    ("optim.lr_initial", float("nan"), ["finite"]),
    ("optim.ema_decay", 1, ["below 1"]),
    ("optim.optimizer_params.weight_decay", "1e-3", ["0.001"]),
    ("optim.scheduler_params.warmup_factor", 1, ["1.0"]),
    ("optim.clip_grad_norm", [1], ["must be a number"]),
]


def at_most(seconds):
    return f"(at most {seconds:.2f} s of processor time)"


def stop_each(refused, cases):
    """Stop a run for each case; the longest processor time in seconds."""
    longest = 0.0
    for path, value, words in cases:
        message, seconds = refused(put(path, value))
        longest = max(longest, seconds)
        for word in words:
            assert word in message, f"{path}: {word!r} is not in {message!r}"
    return longest


def test_a_key_that_nobody_reads_stops_the_run_with_the_one_that_was_meant(refused):
    seconds = stop_each(refused, MISSPELT)
    assert seconds < 10
    observed(
        "configuration",
        "a misspelt key, in every section of the configuration",
        len(MISSPELT),
        f"stopped {KEPT[0]} {at_most(seconds)}, naming the key and the closest ones",
        KEPT[1],
    )


def test_a_name_that_does_not_exist_stops_the_run(refused):
    seconds = stop_each(refused, WRONG)
    observed(
        "configuration",
        "a metric, loss, output, optimizer, schedule, reader, head or path that does not exist",
        len(WRONG),
        f"stopped {KEPT[0]} {at_most(seconds)}, naming the valid ones",
        KEPT[1],
    )


def test_an_impossible_value_stops_the_run(refused):
    seconds = stop_each(refused, VALUES)
    observed(
        "configuration",
        "a text for a number, a size of zero, numbers that YAML reads as text (4e-4)",
        len(VALUES),
        f"stopped {KEPT[0]} {at_most(seconds)}, with the value to write",
        KEPT[1],
    )


def test_all_mistakes_come_in_one_message(refused):
    def edit(config):
        put("optim.batchsize", 4)(config)
        put("task.int_from", "x")(config)

    message, _ = refused(edit)
    assert message.startswith("2 mistakes")
    assert "batch_size" in message
    assert "init_from" in message


def test_sections_of_the_wrong_kind_are_named(refused):
    for path, value in (
        ("optim.optimizer_params", 3),
        ("dataset.val", "data/val"),
        ("outputs.energy", "system"),
        ("evaluation_metrics.metrics", ["mae"]),
        ("loss_functions", {"energy": {"fn": "mae", "coefficient": 1}}),
        ("model.heads", []),
    ):
        message, _ = refused(put(path, value))
        assert path.split(".")[0] in message
        assert "must be" in message


@pytest.mark.parametrize("losses", [None, [], {}, 3])
def test_losses_that_fairchem_cannot_read_are_named(refused, losses):
    message, _ = refused(put("loss_functions", losses))
    assert "`loss_functions` is " in message
    assert message.endswith("it must be a list such as [{energy: {fn: mae, coefficient: 1}}].")


def test_names_that_are_no_schedule_are_not_suggested_and_not_taken(refused):
    message, _ = refused(put("optim.scheduler", "nosuchthing"))
    names = message.split("Valid: ")[1].removesuffix(".").split(", ")
    assert {"LambdaLR", "Null", "OneCycleLR"} <= set(names)
    assert all(name == "Null" or name.endswith(("LR", "Restarts", "er", "eau")) for name in names)
    assert "LRScheduler" not in names
    for path, value in (("optim.scheduler", "Any"), ("optim.optimizer", "Optimizer")):
        message, _ = refused(put(path, value))
        assert f"{path} = {value!r}" in message


def test_an_init_from_that_is_not_there_stops_the_run(refused):
    message, _ = refused(put("task.init_from", "no/such.pt"), PretrainedError)
    assert "no/such.pt does not exist" in message
    message, _ = refused(put("task.init_from", {"checkpont": "x"}), PretrainedError)
    assert "Did you mean 'checkpoint'" in message


def test_the_auxiliary_heads_arguments_are_checked(refused):
    message, _ = refused(put("task.ndem.auxiliary_head", {"widht": 1.0}))
    assert "'width'" in message


def test_settings_of_ndem_stay_strict(refused):
    message, _ = refused(put("task.ndem.sigma", 1), SettingsError)
    assert "sigma_max" in message


# --- what must not stop --------------------------------------------------------------------------


def key_problems(config, old_layout=False):
    """With the keys of the NDeM trainer's components."""
    keys = [key for kind in NDeMTrainer.kinds for key in kind.task_keys]
    return problems_of(config, old_layout, keys)


def complete(path):
    config = load_config(str(path))[0]
    has = {"model", "optim", "dataset", "outputs", "loss_functions"} <= config.keys()
    return config if has and "max_epochs" in config["optim"] else None


def test_every_configuration_of_the_package_passes():
    seen = 0
    for path in sorted(ROOT.glob("configs/*/*.yml")):
        config = complete(path)
        if config is not None:
            assert list(key_problems(trainers_view(config))) == [], path
            assert list(top_level_problems(config)) == [], path
            seen += 1
    assert seen > 50


def test_fairchems_published_layouts_pass(caplog):
    """Sections as in fairchem's configs/oc20/s2ef, configs/s2ef and configs/omat24."""
    base = load_config(str(ROOT / "configs/oc20/31M.yml"))[0]
    backbone = {**base["model"]["backbone"], "name": "equiformer_v2"}
    backbone.pop("model")
    single = {
        **base,
        "logger": "wandb",
        "hide_eval_progressbar": False,
        "model": backbone,
        "outputs": {
            "energy": {"shape": 1, "level": "system"},
            "forces": {
                "irrep_dim": 1,
                "level": "atom",
                "train_on_free_atoms": True,
                "eval_on_free_atoms": True,
            },
        },
        "task": {
            "dataset": "lmdb",
            "description": "forces",
            "type": "regression",
            "metric": "mae",
            "labels": ["potential energy"],
            "grad_input": "atomic forces",
            "train_on_free_atoms": True,
            "eval_on_free_atoms": True,
            "primary_metric": "forces_mae",
            "prediction_dtype": "float32",
        },
        "optim": {
            **base["optim"],
            "grad_accumulation_steps": 1,
            "force_coefficient": 100,
            "energy_coefficient": 4,
            "loss_energy": "mae",
            "loss_force": "l2mae",
        },
    }
    with caplog.at_level(logging.WARNING):
        assert list(key_problems(trainers_view(single))) == []
    assert list(top_level_problems(single)) == []
    for words in ("task.dataset = 'lmdb' has no effect", "grad_accumulation_steps", "shape = 1"):
        assert words in caplog.text
    caplog.clear()  # fairchem converted it: these keys were read
    with caplog.at_level(logging.WARNING):
        assert list(key_problems(trainers_view(single), old_layout=True)) == []
    assert "task." not in caplog.text

    gemnet = copy.deepcopy(single)
    gemnet["optim"] = {
        "batch_size": 16,
        "eval_batch_size": 16,
        "num_workers": 2,
        "load_balancing": "atoms",
        "eval_every": 5000,
        "lr_initial": 0.0005,
        "optimizer": "AdamW",
        "optimizer_params": {"amsgrad": True, "weight_decay": 0.0},
        "scheduler": "ReduceLROnPlateau",
        "mode": "min",
        "factor": 0.8,
        "patience": 3,
        "max_epochs": 80,
        "ema_decay": 0.999,
        "clip_grad_norm": 10,
    }
    assert list(key_problems(trainers_view(gemnet))) == []
    steps = {"warmup_steps": 100, "warmup_factor": 0.2, "lr_milestones": [1000], "lr_gamma": 0.1}
    for key in ("scheduler", "mode", "factor", "patience"):
        gemnet["optim"].pop(key)
    gemnet["optim"] |= steps
    assert list(key_problems(trainers_view(gemnet))) == []

    fitted = copy.deepcopy(base)
    fitted["dataset"]["train"] |= {"format": "ase_db", "a2g_args": {"r_energy": True}}
    fitted["dataset"]["train"]["transforms"] = {
        "normalizer": {"fit": {"targets": {"forces": {"mean": 0.0}}, "batch_size": 64}},
        "element_references": {"fit": {"targets": ["energy"], "num_batches": 100}},
    }
    assert list(key_problems(trainers_view(fitted))) == []


def test_old_keys_that_normalize_nothing_stop(refused):
    def edit(config):
        config["dataset"]["train"] |= {"normalize_labels": True, "target_mean": 0.0}
        del config["dataset"]["train"]["transforms"]

    message, _ = refused(edit)
    assert "normalizes nothing" in message
    assert "transforms.normalizer" in message


def test_a_reader_names_its_own_keys():
    class Ours(LmdbDataset):
        known_keys = ("on_bad",)

    class Theirs(LmdbDataset):
        pass

    assert {"on_bad", "src", "shard"} <= set(reader_keys(Ours))
    assert reader_keys(Theirs) is None  # it does not say, so nothing is refused
    assert "on_bad" not in reader_keys(LmdbDataset)


# --- the whole configuration, which a trainer does not get ---------------------------------------


def test_top_level_keys_are_checked_where_the_command_is_seen(caplog):
    config = {"trainer": "x", "dataset": {"trian": {}, "val": {}}, "evaluation_metric": {}}
    problems = list(top_level_problems({**config, "identifer": "run"}))
    assert len(problems) == 3
    assert "'evaluation_metrics'" in problems[0]
    assert "'identifier'" in problems[1]
    assert "'train'" in problems[2]
    with caplog.at_level(logging.WARNING):
        assert list(top_level_problems({"x-anchors": {}})) == []
    assert "at the top level of the configuration is not used" in caplog.text
    assert command_config() is None


# --- the data ------------------------------------------------------------------------------------


def scaled(target, mean, stdev):
    return put(f"dataset.train.transforms.normalizer.{target}", {"mean": mean, "stdev": stdev})


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (scaled("forces", 0.0, 739.0), ["normalizer.forces", "times the labels'", "0.7"]),
        (scaled("forces", 0.0, 0.0001), ["1/", "of the labels'"]),
        (scaled("energy", -4000.0, 0.635), ["normalizer.energy", "the labels' mean differs"]),
        (scaled("energy", 0.0, 0.0), ["energy.stdev = 0.0 must be above 0"]),
        (scaled("energy", "1e-3", 1.0), ["energy.mean = '1e-3' must be a number"]),
    ],
)
def test_a_normalizer_that_disagrees_with_the_data_stops_the_run(refused, edit, words):
    message, seconds = refused(edit)
    for word in words:
        assert word in message
    assert "stdev: 0." in message  # the value to paste
    assert seconds < 10


def test_the_published_normalizer_passes_and_the_check_can_be_switched_off(new_trainer, caplog):
    new_trainer(edit=scaled("forces", 0.0, 7.39))  # a factor of ten, as OC20's own

    def off(config):
        scaled("forces", 0.0, 739.0)(config)
        config["task"]["normalizer_check"] = False  # a bare off, as YAML reads it

    new_trainer(edit=off)

    def one_scale(config):  # forces that are the energy's gradient
        for target in ("energy", "forces"):
            scaled(target, 0.0, 0.739)(config)
        config["dataset"]["train"]["key_mapping"] = {"y": "energy", "force": "forces"}

    caplog.clear()
    with caplog.at_level(logging.WARNING):
        new_trainer(edit=one_scale)
    assert "normalizer" not in caplog.text
    observed(
        "configuration",
        "a normalizer that is off by a factor above 50 or has another data set's mean; one off "
        "by a factor of ten",
        6,
        "the five stopped before the model was built, with the numbers to paste; the sixth went on",
        KEPT[1],
    )


def test_labels_far_from_the_unit_scale_need_a_normalizer(new_trainer, demo_data, caplog):
    def edit(config):
        del config["dataset"]["train"]["transforms"]["normalizer"]["energy"]
        references = {"element_references": torch.full((119,), 30.0)}
        torch.save(references, demo_data / "references.pt")
        section = {"energy": {"file": str(demo_data / "references.pt")}}
        config["dataset"]["train"]["transforms"]["element_references"] = section

    with caplog.at_level(logging.WARNING):
        new_trainer(edit=edit)
    assert "normalizer.energy is missing" in caplog.text
    assert "mean -" in caplog.text  # after the references of 30 per atom were taken off
    assert isinstance(LinearReferences(), torch.nn.Module)


def test_labels_that_are_not_there_are_named(refused):
    message, _ = refused(lambda c: c["dataset"]["train"].pop("key_mapping"))
    assert "have no 'energy'" in message
    assert "key_mapping" in message
    assert "have no 'forces'" in message


def copied(data, folder):
    """A copy of a split that may be changed."""
    folder.mkdir()
    for path in data.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_load_balancing_needs_metadata(refused, new_trainer, demo_data, tmp_path):
    split = copied(demo_data / "train", tmp_path / "bare")
    (split / "metadata.npz").unlink()

    def edit(config, balancing="atoms"):
        config["dataset"]["train"]["src"] = str(split)
        config["optim"]["load_balancing"] = balancing

    message, seconds = refused(edit)
    assert "metadata.npz does not exist" in message
    assert "load_balancing: null" in message
    new_trainer(edit=lambda config: edit(config, None))
    observed(
        "configuration",
        "load_balancing: atoms without metadata.npz",
        1,
        f"stopped {KEPT[0]} {at_most(seconds)}, on one rank too; load_balancing: null went on",
        KEPT[1],
    )


def test_metadata_of_another_conversion_is_named(refused, demo_data, tmp_path):
    split = copied(demo_data / "train", tmp_path / "other")
    np.savez(split / "metadata.npz", natoms=np.array([3, 4]))
    message, _ = refused(put("dataset.train.src", str(split)))
    assert "lists 2 structures, but the data has 40" in message


def test_data_that_no_reader_opens_is_named(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    message, _ = refused(put("dataset.train.src", str(tmp_path / "empty")))
    assert "cannot be read as format: ndem_lmdb" in message


def test_records_that_cannot_be_read_are_left_to_the_run(demo_data, monkeypatch, caplog):
    """Some: a warning, and the labels of the others; all: the first one's error."""
    read, section = LmdbDataset.__getitem__, {"src": str(demo_data / "train"), "format": "lmdb"}
    monkeypatch.setattr(
        LmdbDataset, "__getitem__", lambda self, i: read(self, i) if i % 2 else 1 / 0
    )
    with caplog.at_level(logging.WARNING):
        assert len(list(_spread_records(_open(section), section))) == 20
    assert "20 of 40 records could not be read" in caplog.text
    monkeypatch.setattr(LmdbDataset, "__getitem__", lambda self, i: 1 / 0)
    with pytest.raises(ValueError, match="record 0: ZeroDivisionError"):
        list(_spread_records(_open(section), section))


def test_a_split_in_many_files_is_not_opened_whole(demo_data, tmp_path, caplog):
    data = next((demo_data / "train").glob("*.lmdb"))
    for i in range(ALL_SHARDS + 6):
        (tmp_path / f"{i:03d}.lmdb").symlink_to(data)
    np.savez(tmp_path / "metadata.npz", natoms=np.ones(1000, dtype=int))
    section = {"src": str(tmp_path), "format": "lmdb"}
    with pytest.MonkeyPatch.context() as patch:  # links to one file, which opens once
        patch.setattr(LmdbDataset, "connect_db", lambda self, path: _FakeEnvironment(str(path)))
        parts = _open(section)
    assert len(parts) == SHARDS
    assert [part.env.name[-8:] for part in parts][::7] == ["000.lmdb", "069.lmdb"]
    config = {"optim": {"batch_size": 10, "eval_every": 101, "max_epochs": 1}}
    with caplog.at_level(logging.WARNING):
        _warn_about_length(config, section, parts)
    assert "This run has 100 steps (1,000 structures" in caplog.text  # as metadata.npz says


class _FakeEnvironment:
    """An LMDB of five entries; every part of the split needs one of its own."""

    def __init__(self, name):
        self.name = name

    def begin(self):
        return {}

    def stat(self):
        return {"entries": 5}

    def close(self):
        pass


def test_a_run_without_a_checkpoint_is_announced(new_trainer, caplog):
    with caplog.at_level(logging.WARNING):
        new_trainer()
    assert "This run has 10 steps (40 structures, 4 per step, 1 epoch)" in caplog.text
    assert "optim.eval_every is 1000: it ends without a validation" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        new_trainer(edit=lambda c: c["optim"].update(eval_every=10))
        new_trainer(edit=lambda c: c["optim"].update(checkpoint_every=-1, eval_every=10))
    assert "it ends" not in caplog.text


def test_what_rank_zero_finds_stops_every_rank(monkeypatch):
    """A rank without the data hears of the mistake; an error there is no hang but a sentence."""

    def broken():
        raise OSError("disk")

    assert rank_zero_finds(lambda: ["a"]) == ["a"]
    assert "OSError: disk" in rank_zero_finds(broken)[0]

    def broadcast(listed, src, device):
        listed[0] = ["from rank 0"]

    monkeypatch.setattr(distutils, "is_master", lambda: False)
    monkeypatch.setattr(distutils, "initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    monkeypatch.setattr(distutils, "broadcast_object_list", broadcast)
    assert rank_zero_finds(broken) == ["from rank 0"]


# --- the real command ----------------------------------------------------------------------------


def command(config, folder, *arguments):
    """(output, seconds, status) of the ``fairchem`` command."""
    folder.mkdir()
    (folder / "run.yml").write_text(yaml.safe_dump(config))
    started = time.perf_counter()
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("fairchem"), "--mode", "train"),
            *("--config-yml", folder / "run.yml", "--run-dir", folder, "--cpu", *arguments),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.stdout + done.stderr, time.perf_counter() - started, done.returncode


@pytest.mark.slow
def test_the_command_stops_in_its_first_seconds(demo_data, tmp_path):
    """Keys that only the command sees, on its command line too; nothing was built."""
    config = tiny_config(demo_data)
    config["evaluation_metric"] = config.pop("evaluation_metrics")
    config["dataset"]["vall"] = config["dataset"].pop("val")
    output, seconds, status = command(
        config, tmp_path / "keys", "--task.int_from=x.pt", "--optim.batch_sise=8"
    )
    assert status != 0
    for words in ("'evaluation_metrics'", "dataset.vall", "'init_from'", "'batch_size'"):
        assert words in output, output[-3000:]
    assert "Loading model" not in output
    assert "Loading dataset" not in output
    observed(
        "configuration",
        "four misspelt keys given to the fairchem command, two of them where a trainer is not "
        "told of them",
        1,
        f"the command ended after {seconds:.0f} s, imports included, naming all four",
        KEPT[1],
    )


def stopped_rank(rank, port, config, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        trainer_of(config, folder)
    except ConfigError as error:
        (folder / f"rank{rank}.txt").write_text(str(error))
    torch.distributed.barrier()  # both are still in step with each other
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_stop_together(demo_data, tmp_path):
    config = tiny_config(demo_data)
    config["dataset"]["train"]["transforms"]["normalizer"]["forces"]["stdev"] = 300.0
    fork_ranks(2, stopped_rank, free_port(), config, tmp_path)
    messages = [(tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1)]
    assert messages[0] == messages[1]
    assert "transforms.normalizer.forces" in messages[0]
    observed(
        "configuration",
        "a normalizer 400 times too large, on two ranks",
        1,
        "both ranks stopped before the model was built, with the same sentence, and none hung",
        KEPT[1],
    )


def test_the_registry_is_as_it_was():
    """The checks look classes up and register none."""
    before = {name: set(mapping) for name, mapping in registry.mapping.items()}
    config = load_config(str(ROOT / "configs/oc20/demo.yml"))[0]
    list(key_problems(trainers_view(config)))
    assert {name: set(mapping) for name, mapping in registry.mapping.items()} == before
