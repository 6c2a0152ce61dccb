"""A loss, an output or a gradient that is not finite: no rank takes the step, and it is named."""

from __future__ import annotations

import json

import pytest
import torch

from conftest import trainer_of
from fairchem_kit.checkpoints import CheckpointStore
from fairchem_kit.training.bad_steps import FILE_NAME, BadStepsError
from helpers import state_of
from reliability import observed
from resuming import RUN, finish, launch, result, short_run, train

NAN = float("nan")
WITH_ARTICLE = {"label": "a label", "output": "an output", "gradient": "a gradient"}


def spoil(trainer, steps, what: str, value: float = NAN) -> None:
    """Put ``value`` into one structure's labels, or the outputs, in the given steps."""
    forward = trainer._forward

    def wrapped(batch):
        if trainer.step not in steps or not trainer.model.training:
            return forward(batch)
        if what == "label":
            batch.energy[1] = value
        out = forward(batch)
        if what == "output":
            spoiled = torch.zeros_like(out["forces"])
            spoiled[0] = value
            out["forces"] = out["forces"] + spoiled
        return out

    trainer._forward = wrapped


def lines_of(run_dir) -> list[dict]:
    text = (run_dir / "logs" / "ndem_ocp.HistoryLogger" / RUN / FILE_NAME).read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("what", ["label", "output", "gradient"])
@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_a_step_that_is_not_finite_is_not_taken(demo_data, tmp_path, what, value, caplog):
    before, after = {}, {}

    def hook(trainer):
        spoil(trainer, {3}, what, value)
        if what == "gradient":
            parameter = next(trainer.model.parameters())
            parameter.register_hook(
                lambda grad: torch.full_like(grad, value) if trainer.step == 3 else grad
            )
        backward = trainer._backward

        def wrapped(loss):
            if trainer.step == 3:
                before.update({k: v.clone() for k, v in state_of(trainer).items()})
            backward(loss)
            if trainer.step == 3:
                after.update({k: v.clone() for k, v in state_of(trainer).items()})

        trainer._backward = wrapped

    trainer = train(short_run(demo_data), tmp_path, hook)
    assert trainer.step == 18
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.isfinite(v).all() for v in state_of(trainer).values())
    assert all(torch.isfinite(v).all() for v in trainer.ema.shadow_params)
    history = result(tmp_path)["history"]
    assert [h["skipped_steps"] for h in history if "skipped_steps" in h] == [1]
    assert all(line["forces_mae"] > 0 for line in history if "forces_mae" in line)
    (line,) = lines_of(tmp_path)
    assert line["step"] == 3
    assert line["what"] == ("gradient" if what == "gradient" else "loss or outputs")
    named = line["samples"]["rank 0"]
    assert len(named) == (4 if what == "gradient" else 1)
    assert named[0] in caplog.text
    observed(
        "ranks",
        f"{value} in {WITH_ARTICLE[what]}",
        1,
        "the step was not taken, its samples are in the log; weights and EMA stay finite",
        "the step",
    )


@pytest.mark.ddp
@pytest.mark.parametrize("what", ["label", "output"])
def test_all_ranks_skip_a_step_that_is_bad_on_one(demo_data, tmp_path, what):
    def hook(trainer):
        if torch.distributed.get_rank() == 1:
            spoil(trainer, {2, 3}, what)

    assert finish(launch(short_run(demo_data), tmp_path, 2, hook), tmp_path) == 0
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == [2, 3]
    assert all(list(line["samples"]) == ["rank 1"] for line in lines)
    newest = result(tmp_path)["newest"]
    assert newest["step"] == 9
    assert all(torch.isfinite(v).all() for v in newest["state_dict"].values())
    observed(
        "ranks",
        f"NaN in {WITH_ARTICLE[what]} on one of two ranks, two steps in a row",
        1,
        "both ranks skipped both steps and went on; the samples of that rank are in the log",
        "the steps",
    )


@pytest.mark.ddp
def test_too_many_in_a_row_stop_the_run_with_its_last_good_checkpoint(demo_data, tmp_path):
    config = short_run(demo_data)
    config["task"]["max_bad_steps"] = 3

    def hook(trainer):
        if torch.distributed.get_rank() == 1:
            spoil(trainer, range(6, 100), "label")

    processes = launch(config, tmp_path, 2, hook)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [1, 1]
    for rank in (0, 1):
        text = (tmp_path / f"error-{rank}.txt").read_text()
        assert "BadStepsError: 3 steps in a row, up to step 8" in text
    newest = CheckpointStore(tmp_path / "checkpoints" / RUN).read_newest()
    assert newest is not None
    assert newest[1]["step"] == 4
    assert all(torch.isfinite(v).all() for v in newest[1]["state_dict"].values())
    observed(
        "ranks",
        "NaN labels on one of two ranks in every step, max_bad_steps 3",
        1,
        "both ranks stopped after the third step with the same error, which names file and samples",
        "the steps since the last checkpoint; its weights are finite",
    )


def test_bad_steps_that_are_not_in_a_row_do_not_stop_the_run(demo_data, tmp_path):
    config = short_run(demo_data)
    config["task"]["max_bad_steps"] = 2
    trainer = train(config, tmp_path, lambda t: spoil(t, {2, 4, 6, 8}, "label"))
    assert trainer.bad_steps.total == 4
    with pytest.raises(BadStepsError, match=r"2 steps in a row, up to step 5.*task.max_bad_steps"):
        train(config, tmp_path / "other", lambda t: spoil(t, {2, 4, 5}, "label"))


def test_mixed_precision_stops_when_no_scale_makes_the_gradient_finite(demo_data, tmp_path):
    """Its scaler leaves steps out and halves its scale: 4, 2, 1 as usual, then they count."""
    config = short_run(demo_data)
    config["task"]["max_bad_steps"] = 2

    def hook(trainer):
        trainer.scaler = torch.GradScaler("cpu", init_scale=4.0)  # fairchem has it on GPUs only
        parameter = next(trainer.model.parameters())
        parameter.register_hook(
            lambda grad: torch.full_like(grad, NAN) if trainer.step >= 3 else grad
        )

    with (
        pytest.warns(UserWarning, match="CUDA is not available"),
        pytest.raises(BadStepsError, match=r"2 steps in a row, up to step 6, .*\(gradient\)"),
    ):
        train(config, tmp_path, hook)
    assert [line["step"] for line in lines_of(tmp_path)] == [5, 6]


def test_a_label_is_named_by_its_own_structure(demo_data, tmp_path):
    """Not the whole batch: the one structure whose label or output is bad."""
    trainer = trainer_of(short_run(demo_data), tmp_path, run_id=RUN)
    trainer.model.train()
    batch = next(
        iter(
            trainer.train_loader.__class__(
                trainer.train_dataset, batch_size=4, collate_fn=trainer.collater
            )
        )
    )
    batch.force_label = torch.zeros(batch.pos.shape)
    trainer.bad_steps.look_at(batch, {})
    assert trainer.bad_steps._bad_graphs() is None
    last_atom_of_2 = int(batch.natoms[:3].sum()) - 1
    batch.force_label[last_atom_of_2, 1] = NAN
    assert trainer.bad_steps._bad_graphs().tolist() == [False, False, True, False]
    assert trainer.bad_steps._ids(trainer.bad_steps._bad_graphs()) == [
        f"{batch.sid[2]}_{int(batch.fid[2])}"
    ]
