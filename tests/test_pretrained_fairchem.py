"""Starting a new run from checkpoints of fairchem and of this package, on any backbone."""

from __future__ import annotations

import collections
import copy
import logging
import pathlib

import numpy as np
import pytest
import torch
from fairchem.core.common.registry import registry
from fairchem.core.modules.normalization.normalizer import create_normalizer

from conftest import tiny_config
from helpers import state_of
from ndem_ocp.models.two_view import AUXILIARY_OUTPUT
from ndem_ocp.pretrained import PretrainedError, init_from, load_pretrained
from ndem_ocp.testing import steps, trainer_of
from ndem_ocp.testing.runs import PLAIN_TRAINER
from reliability import observed

AUXILIARY = f"output_heads.{AUXILIARY_OUTPUT}."


def after_three_steps(demo_data, folder, name=None):
    trainer = trainer_of(tiny_config(demo_data), folder, name, seed=3)
    steps(trainer, 3)
    return trainer


@pytest.fixture(scope="module")
def source(demo_data, tmp_path_factory):
    """A trainer of the tiny model with NDeM after three steps."""
    return after_three_steps(demo_data, tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def plain(demo_data, tmp_path_factory):
    """The same of fairchem's own trainer, with the two files that it saves."""
    trainer = after_three_steps(demo_data, tmp_path_factory.mktemp("plain"), PLAIN_TRAINER)
    trainer.before_best = {name: value.clone() for name, value in state_of(trainer).items()}
    trainer.last = trainer.save(checkpoint_file="checkpoint.pt", training_state=True)
    trainer.best = trainer.save(checkpoint_file="best_checkpoint.pt", training_state=False)
    return trainer


@pytest.fixture
def new_model(source):
    """``new_model(key=value of the backbone, ...)``: a fresh two-view model of the same kind."""

    def make(auxiliary=None, **backbone):
        section = copy.deepcopy(source.config["model"])
        section["backbone"].update(backbone)
        section["auxiliary_head"].update(auxiliary or {})
        return registry.get_model_class(section.pop("name"))(**section)

    return make


@pytest.fixture
def saved(tmp_path):
    """``saved(content)``: path of a checkpoint with this content."""

    def save(content, name="start.pt"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


def content_of(trainer, **more):
    """What a trainer of fairchem saves, without the run's paths."""
    return {
        "state_dict": {f"module.{name}": value for name, value in state_of(trainer).items()},
        "config": copy.deepcopy(trainer.config),
        "normalizers": {name: value.state_dict() for name, value in trainer.normalizers.items()},
        "optimizer": {"state": {}},
        "step": 3,
        **more,
    }


def averages(trainer):
    """The moving average by name, from the trainer itself."""
    model = trainer._unwrapped_model
    names = [name for name, value in model.named_parameters() if value.requires_grad]
    return dict(zip(names, trainer.ema.shadow_params, strict=True))


def equal(model, expected, start=""):
    state = model.state_dict()
    names = [name for name in expected if name.startswith(start)]
    assert names
    return all(torch.equal(state[name], expected[name]) for name in names)


# --- which weights -------------------------------------------------------------------------------


def test_a_plain_checkpoint_of_fairchems_trainer_starts_an_ndem_run(plain, new_model):
    """fairchem's own save: positional averages, DDP's names absent, no auxiliary head."""
    path = plain.last
    model = new_model()
    before = {k: v.clone() for k, v in model.state_dict().items() if k.startswith(AUXILIARY)}
    report = load_pretrained(model, path)
    assert report.kind == "fairchem"
    assert equal(model, averages(plain))
    assert not equal(model, plain.before_best, "backbone.")  # the average is not the last step
    assert before
    assert equal(model, before)  # the auxiliary head starts fresh
    assert report.problems == report.impossible == []
    text = str(report)
    for words in (
        "(kind: fairchem)",
        "mapped into backbone: ",
        "mapped into output_heads.energy: ",
        "The auxiliary head starts from random weights: head noisy_forces is not in the checkpoint",
        "Weights: the moving average.",
        f"The file is at step {plain.step}; this run starts at step 0",
    ):
        assert words in text


def test_raw_weights_and_the_average_of_a_best_checkpoint(plain, new_model):
    path = plain.last
    model = new_model()
    load_pretrained(model, path, weights="raw")
    assert equal(model, plain.before_best)
    report = load_pretrained(model, plain.best)  # fairchem's best checkpoint is the average
    assert equal(model, averages(plain))
    assert "in a best checkpoint of fairchem, the average" in str(report)
    with pytest.raises(PretrainedError, match="no separate moving average"):
        load_pretrained(model, plain.best, weights="ema")


def test_names_of_the_average_win_over_positions(source, new_model, saved):
    named = averages(source)
    shuffled = dict(reversed(named.items()))
    ema = {"shadow_params": list(shuffled.values()), "names": list(shuffled)}
    model = new_model()
    load_pretrained(model, saved(content_of(source, ema=ema)))
    assert equal(model, named)
    ema["names"] = ema["names"][1:]
    with pytest.raises(PretrainedError, match="weights: ema is not possible"):
        load_pretrained(model, saved(content_of(source, ema=ema)), weights="ema")


def test_a_best_checkpoint_of_this_package_holds_the_average_only(source, new_model, saved):
    path = saved(content_of(source, weights="ema"))
    model = new_model()
    assert "the only weights in the file" in str(load_pretrained(model, path))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(PretrainedError, match="only has the moving average"):
        load_pretrained(model, path, weights="raw")
    assert equal(model, before)


def test_an_average_that_cannot_be_assigned_is_not_used_and_reported(
    source, new_model, saved, caplog
):
    ema = {"shadow_params": list(averages(source).values())[::-1]}
    model = new_model()
    with caplog.at_level(logging.WARNING):
        report = load_pretrained(model, saved(content_of(source, ema=ema)))
    assert equal(model, state_of(source))
    assert "uses the raw weights" in caplog.text
    assert "cannot be identified" in str(report)


def test_an_average_of_a_run_with_a_frozen_backbone_is_named_by_shape(source, new_model, saved):
    heads = {k: v + 1.0 for k, v in averages(source).items() if k.startswith("output_heads.")}
    path = saved(content_of(source, ema={"shadow_params": list(heads.values())}))
    model = new_model()
    report = load_pretrained(model, path)
    if "cannot be identified" in str(report):  # heads and backbone can have the same shapes
        assert equal(model, state_of(source))
    else:
        assert equal(model, heads)


# --- which heads ---------------------------------------------------------------------------------


def test_the_auxiliary_head_is_loaded_where_it_is_the_same(source, new_model, saved):
    model = new_model()
    report = load_pretrained(model, saved(content_of(source)), noise_head=True)
    assert equal(model, state_of(source))
    assert report.missing == {}
    wider = new_model(auxiliary={"width": 1.0})
    report = load_pretrained(wider, saved(content_of(source)))
    assert "head noisy_forces has different shapes in the checkpoint" in str(report)
    assert equal(wider, state_of(source), "backbone.")
    with pytest.raises(PretrainedError, match="Head noisy_forces has different shapes"):
        load_pretrained(wider, saved(content_of(source)), noise_head=True)


def test_heads_are_chosen_by_name(source, new_model, saved):
    path = saved(content_of(source))
    for heads, loaded in (("none", ()), ("forces", ("forces",)), ("auto", ("forces", "energy"))):
        model = new_model()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        load_pretrained(model, path, heads=heads)
        assert equal(model, state_of(source), "backbone.")
        for head in ("energy", "forces"):
            expected = state_of(source) if head in loaded else before
            assert equal(model, expected, f"output_heads.{head}.")
    with pytest.raises(PretrainedError, match="'stress' is not a head of the model"):
        load_pretrained(model, path, heads="stress")


def test_a_single_class_checkpoint_starts_a_hydra_model(source, new_model, saved):
    """Published EquiformerV2 files have neither ``backbone.`` nor ``output_heads.`` in names."""
    arguments = copy.deepcopy(source.config["model"]["backbone"])
    del arguments["model"]
    old = registry.get_model_class("equiformer_v2")(**arguments)
    trained = [parameter.detach() + 1.0 for parameter in old.parameters()]
    content = {
        "state_dict": {f"module.module.{name}": v for name, v in old.state_dict().items()},
        "config": {"model": "equiformer_v2", "model_attributes": arguments},
        "normalizers": {},
        "ema": {"shadow_params": trained},
    }
    model = new_model()
    report = load_pretrained(model, saved(content))
    state = model.state_dict()
    blocks = {"energy_block": "energy", "force_block": "forces"}
    for (name, _), value in zip(old.named_parameters(), trained):
        head = blocks.get(name.split(".")[0])
        ours = f"output_heads.{head}.{name}" if head else f"backbone.{name}"
        assert torch.equal(state[ours], value), name
    assert set(report.missing) == {name for name in state if name.startswith(AUXILIARY)}


# --- what is refused or said ---------------------------------------------------------------------


def test_another_backbone_is_refused_and_changes_nothing(source, new_model, saved):
    path = saved(content_of(source))
    model = new_model(sphere_channels=16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(PretrainedError, match="of the backbone's") as refused:
        load_pretrained(model, path)
    assert "strict: False" in str(refused.value)
    assert equal(model, before)
    report = load_pretrained(model, path, strict=False)
    assert report.loaded
    assert report.shapes


def test_settings_that_shapes_do_not_show_are_compared(source, new_model, saved):
    config = copy.deepcopy(source.config)
    config["model"]["backbone"].update(max_radius=9.0, drop_path_rate=0.2, max_neighbors=30)
    model = new_model()
    section = {"checkpoint": str(saved(content_of(source)))}
    with pytest.raises(PretrainedError, match=r"max_radius: 4\.0 in the checkpoint, 9\.0"):
        init_from(model, section, config=config)
    section["strict"] = False
    report = init_from(model, section, config=config)
    assert any("max_neighbors" in note for note in report.notes)
    assert "drop_path_rate" not in str(report)


def test_other_normalizers_give_a_warning(source, new_model, saved, caplog):
    path = str(saved(content_of(source)))
    model = new_model()
    ours = dict(source.normalizers)
    with caplog.at_level(logging.WARNING):
        init_from(model, path, normalizers=ours)
    assert "normalizer" not in caplog.text
    ours["forces"] = create_normalizer(mean=0.0, rmsd=2.887)
    with caplog.at_level(logging.WARNING):
        report = init_from(model, path, normalizers=ours)
    assert "The normalizer of forces differs from the checkpoint's" in caplog.text
    assert "stdev: 0.739" in caplog.text  # to paste
    assert any("normalizer of forces" in note for note in report.notes)
    assert "normalizer of energy" not in caplog.text
    observed(
        "configuration",
        "task.init_from with a checkpoint whose forces were normalised by another number",
        1,
        "loaded, with a warning that gives both numbers and the line to paste",
        "nothing",
    )


def test_a_path_in_the_same_run_gets_the_hint_to_resume(plain, new_model, caplog):
    path = plain.last
    with caplog.at_level(logging.WARNING):
        init_from(new_model(), path, config=plain.config)
    assert "a checkpoint of this same run" in caplog.text
    assert "task.resume" in caplog.text


def test_values_that_are_not_finite_are_refused(source, new_model, saved):
    content = copy.deepcopy(content_of(source))
    next(iter(content["state_dict"].values())).view(-1)[0] = float("nan")
    with pytest.raises(PretrainedError, match="not finite"):
        load_pretrained(new_model(), saved(content), strict=False)


def test_a_wrong_word_is_refused(new_model):
    model = new_model()
    for section, words in (
        ({"checkpoint": "a", "weights": "emma"}, "Did you mean 'ema'"),
        ({"checkpoint": "a", "kind": "fairchme"}, "Did you mean 'fairchem'"),
    ):
        with pytest.raises(PretrainedError, match=words):
            init_from(model, section)


# --- reading -------------------------------------------------------------------------------------


def test_what_old_checkpoints_carry_is_read_without_running_it(source, new_model, saved):
    """numpy's numbers, paths and Python's own types need no unrestricted reader."""
    extras = {
        "val_metrics": {"metric": np.float64(0.5), "totals": np.arange(3)},
        "folder": pathlib.PurePosixPath("logs"),
        "kind": int,
    }
    model, path = new_model(), saved(content_of(source, **extras))
    load_pretrained(model, path)
    assert equal(model, state_of(source))


@pytest.mark.parametrize("kind", ["auto", "fairchem"])
def test_other_objects_need_unsafe_and_are_read_with_a_warning(
    kind, source, new_model, saved, caplog
):
    path = saved(content_of(source, extra=collections.UserDict(a=1)))
    model = new_model()
    with pytest.raises(PretrainedError, match=r"UserDict.* can run any code") as refused:
        load_pretrained(model, path, kind=kind)
    assert "task.init_from.unsafe: True" in str(refused.value)
    with caplog.at_level(logging.WARNING):
        load_pretrained(model, path, kind=kind, unsafe=True)
    assert "unrestricted reader, because unsafe" in caplog.text


# --- in a run ------------------------------------------------------------------------------------


def test_a_run_starts_at_step_zero_with_the_files_weights(source, new_trainer, saved):
    path = str(saved(content_of(source)))
    trainer = new_trainer(edit=lambda config: config["task"].update(init_from=path))
    seen = {}
    forward = trainer._forward

    def recording(batch):
        if not seen:
            seen.update({k: v.clone() for k, v in state_of(trainer).items()}, step=trainer.step)
        return forward(batch)

    trainer._forward = recording
    average = list(trainer.ema.shadow_params)
    steps(trainer, 1)
    assert seen.pop("step") == 1
    assert all(torch.equal(seen[name], value) for name, value in state_of(source).items())
    assert len(average) == len(averages(source))
