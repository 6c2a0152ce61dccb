"""Several validation splits during training: their numbers, their mean, and no trace of them."""

from __future__ import annotations

import numpy as np
import pytest

from fairchem_kit.history.logger import read_history
from fairchem_kit.history.validation_sets import extra_validation_splits
from fairchem_kit.training.config import ConfigError
from fairchem_kit.training.validation_splits import mean_over_splits
from resuming import finish, launch, result, run_to_end, same_run, short_run


def with_splits(config, data):
    config["task"]["validation_splits"] = {
        "ood_ads": str(data / "val_ood"),
        "val_ood_both": {"src": str(data / "val_ood"), "first_n": 3},
    }


def lines_of(history, split):
    return [line for line in history if line["split"] == split]


@pytest.fixture(scope="module")
def runs(demo_data, tmp_path_factory):
    """The same run with and without more splits."""
    folder = tmp_path_factory.mktemp("splits")
    plain = run_to_end(short_run(demo_data), folder / "plain")
    config = short_run(demo_data, lambda config: with_splits(config, demo_data))
    return plain, run_to_end(config, folder / "splits"), config


def test_every_split_and_their_mean_are_logged_at_the_same_steps(runs):
    history = runs[1]["history"]
    by_split = {
        name: lines_of(history, name) for name in ("val", "val_ood_ads", "val_ood_both", "val_mean")
    }
    steps = [line["step"] for line in by_split["val"]]
    assert steps == [5, 10, 15]
    for name, lines in by_split.items():
        assert [line["step"] for line in lines] == steps, name
        for line in lines:
            assert line["energy_mae_meV"] == pytest.approx(1000 * line["energy_mae"])
            assert line["forces_mae_meV_per_A"] == pytest.approx(1000 * line["forces_mae"])
            assert {"forces_cosine_similarity", "energy_forces_within_threshold"} <= line.keys()
    for index in range(len(steps)):
        three = [by_split[n][index]["forces_mae"] for n in ("val", "val_ood_ads", "val_ood_both")]
        assert len(set(three)) == 3  # three different sets
        assert by_split["val_mean"][index]["forces_mae"] == pytest.approx(np.mean(three))


def test_more_splits_leave_training_as_it_is_to_the_bit(runs):
    plain, more, _ = runs
    kept = [line for line in more["history"] if line["split"] in ("train", "val")]
    assert same_run({**more, "history": kept}, plain) == []
    assert more["index"]["newest"]["best_val_metric"] == plain["index"]["newest"]["best_val_metric"]


@pytest.mark.parametrize("call", [3, 4])  # of eight batches: in the second split, in the third
def test_a_run_stopped_within_a_later_split_resumes_exactly(runs, tmp_path, call):
    from fairchem_kit.training.resume.stopping import request_stop

    _, whole, config = runs

    def stop_in_validation(trainer):
        forward, seen = trainer._forward, []

        def counting(batch):
            if trainer.ending.validating and trainer.step == 10:
                seen.append(1)
                if len(seen) == call:
                    request_stop("test")
            return forward(batch)

        trainer._forward = counting

    assert finish(launch(config, tmp_path, hook=stop_in_validation), tmp_path) == 3
    assert finish(launch(config, tmp_path), tmp_path) == 0
    assert same_run(result(tmp_path), whole) == []


@pytest.mark.ddp
def test_two_ranks_have_the_numbers_of_one(demo_data, tmp_path):
    def edit(config):
        splits = {"ood": {"src": str(demo_data / "val_ood"), "first_n": 8}}
        config["task"]["validation_splits"] = splits
        config["optim"].update(batch_size=2, max_epochs=1, eval_every=2, lr_initial=0.0)

    config = short_run(demo_data, edit, coefficient=0.0)
    two = run_to_end(config, tmp_path / "two", ranks=2)
    config["optim"]["batch_size"] = 4
    one = run_to_end(config, tmp_path / "one")
    for name in ("val_ood", "val_mean"):
        a, b = lines_of(one["history"], name)[0], lines_of(two["history"], name)[0]
        assert a["energy_mae"] == pytest.approx(b["energy_mae"], rel=1e-4)
        assert a["forces_mae"] == pytest.approx(b["forces_mae"], rel=1e-4)


def test_validate_and_predict_alone_see_the_one_split_they_are_asked_for(new_trainer, demo_data):
    trainer = new_trainer(edit=lambda config: with_splits(config, demo_data))
    trainer.validate("val", disable_tqdm=True)
    splits = {line["split"] for line in read_history(trainer.logger.path)}
    assert splits == {"val"}
    assert trainer.test_loader is None


def test_a_split_has_the_settings_of_the_main_one_but_its_selection(demo_data):
    config = {
        "dataset": {"src": "a", "format": "ndem_lmdb", "key_mapping": {"y": "energy"}},
        "val_dataset": {"src": "b", "first_n": 2, "metadata_path": "m", "on_bad_record": "skip"},
        "task": {"validation_splits": {"x": "c", "y": {"src": "d", "sample_n": 4}}},
    }
    common = {"format": "ndem_lmdb", "key_mapping": {"y": "energy"}, "on_bad_record": "skip"}
    assert extra_validation_splits(config) == {
        "val_x": {**common, "src": "c"},
        "val_y": {**common, "src": "d", "sample_n": 4},
    }


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("somewhere", "must be a mapping"),
        ({"ood": 3}, "a path, or a mapping with src"),
        ({"ood": {"first_n": 3}}, "task.validation_splits.ood.src is missing"),
        ({"mean": "."}, "would be logged as val_mean, which is taken"),
        ({"val": "."}, "would be logged as val, which is taken"),
        ({"ood": ".", "val_ood": "."}, "ood and val_ood would both be logged as val_ood"),
        ({"o/d": "."}, "'o/d' is not a valid name"),
        ({"ood": "no/such/folder"}, "task.validation_splits.ood = 'no/such/folder': there is no"),
    ],
)
def test_mistakes_stop_a_run_before_it_starts(new_trainer, section, message):
    def edit(config):
        config["task"]["validation_splits"] = section

    with pytest.raises(ConfigError) as error:
        new_trainer(edit=edit)
    assert message in str(error.value)


def test_the_mean_leaves_out_what_one_split_has_no_number_for():
    def split(**metrics):
        return {name: {"metric": value} for name, value in metrics.items()}

    found = mean_over_splits([split(a=1.0, b=2.0, c=1.0), split(a=3.0, b=float("nan"))])
    assert found == {"a": 2.0}
