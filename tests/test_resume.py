"""A run that is killed or stopped anywhere and resumed is the run that was left alone."""

from __future__ import annotations

import copy
import json
import logging
import os
import random
import re
import signal
import statistics
import time

import pytest
import torch

import resuming
from conftest import trainer_of
from fairchem_kit.checkpoints import CheckpointError, CheckpointStore, UnsafeError, read_checkpoint
from fairchem_kit.history.logger import read_history
from fairchem_kit.training.config import ConfigError
from fairchem_kit.training.resume import stopping
from reliability import observed, soak
from resuming import FORK, RUN, finish, kill, launch, result, run_to_end, same_run, short_run

# 3: nothing is saved yet; 4: saved, no validation; 6: end of an epoch; 10: validation too
EVERYWHERE = (3, 4, 6, 8, 10, 12, 16, 17)
MOMENTS = {
    "forward": (3, 17),
    "optimizer": (6,),
    "validation": (10,),
    "save": (8,),
    "after saving": (12,),
    "best": (5,),
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(moment: str, step: int):
    """A hook that kills this process at ``moment`` of ``step``."""

    def hook(trainer) -> None:
        def before(name: str, owner, after: bool = False):
            method = getattr(owner, name)

            def wrapped(*args, **kwargs):
                if trainer.step >= step and not after:
                    die()
                result = method(*args, **kwargs)
                if trainer.step >= step:
                    die()
                return result

            setattr(owner, name, wrapped)

        places = {
            "forward": ("_forward", trainer, False),
            "optimizer": ("_backward", trainer, True),
            "validation": ("validate", trainer, True),
            "save": ("save", trainer.resume.store, False),
            "after saving": ("save", trainer.resume.store, True),
            "best": ("save_best", trainer.resume.store, False),
        }
        before(*places[moment])

    return hook


@pytest.fixture(scope="module")
def whole(demo_data, tmp_path_factory):
    """``whole(ranks)``: the undisturbed run, made once for each number of ranks."""
    runs = {}

    def get(ranks: int = 1):
        if ranks not in runs:
            folder = tmp_path_factory.mktemp(f"whole-{ranks}")
            runs[ranks] = run_to_end(short_run(demo_data), folder, ranks)
        return runs[ranks]

    return get


def test_two_undisturbed_runs_are_the_same_and_seeds_differ(demo_data, tmp_path, whole):
    """The comparison below can fail."""
    assert same_run(run_to_end(short_run(demo_data), tmp_path / "again"), whole()) == []
    other = short_run(demo_data, sigma_max=0.02)
    assert len(same_run(run_to_end(other, tmp_path / "other"), whole())) > 20


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_in_any_part_of_a_step(demo_data, tmp_path, whole, moment):
    config = short_run(demo_data)
    killed = 0
    for step in soak(EVERYWHERE, MOMENTS[moment]):
        run = tmp_path / str(step)
        run.mkdir()
        status = finish(launch(config, run, hook=dying(moment, step)), run)
        assert status in (-signal.SIGKILL, 0)  # 0: there is no such moment after this step
        killed += status != 0
        assert same_run(run_to_end(config, run), whole()) == [], step
    assert killed
    observed(
        "checkpoints",
        f"kill -9 at a chosen step, {moment}",
        killed,
        "resumed; weights, optimizer, EMA, generators and curves equal to the bit",
        "nothing but the steps since the last checkpoint, which were done again",
    )


def test_killed_in_the_validation_of_the_last_step(demo_data, tmp_path):
    """The resumed run has only the rest of a step to do and leaves what a whole run leaves."""

    def at_the_end(config):
        config["optim"].update(eval_every=6, checkpoint_every=6)

    config = short_run(demo_data, at_the_end)
    expected = run_to_end(config, tmp_path / "whole")
    run = tmp_path / "run"
    run.mkdir()
    assert finish(launch(config, run, hook=dying("after saving", 18)), run) == -signal.SIGKILL
    assert result(run)["newest"]["tail"] == {"evaluate": True}
    assert same_run(run_to_end(config, run), expected) == []
    assert same_run(run_to_end(config, run), expected) == []  # started once more


@pytest.mark.ddp
@pytest.mark.parametrize("step", soak([3, 5, 7], [5]))
def test_two_ranks_killed_and_resumed(demo_data, tmp_path, whole, step):
    """One rank dies by itself, the other is killed while it waits, as a scheduler would."""
    config = short_run(demo_data)

    def hook(trainer):
        if torch.distributed.get_rank() == step % 2:
            dying("forward", step)(trainer)

    processes = launch(config, tmp_path, ranks=2, hook=hook)
    processes[step % 2].join(60)
    kill(processes)
    assert same_run(run_to_end(config, tmp_path, ranks=2), whole(2)) == []
    observed(
        "checkpoints",
        f"two ranks, kill -9 of one in step {step} of 9",
        1,
        "resumed; equal to the bit on both ranks' generators",
        "nothing but the steps since the last checkpoint, which were done again",
    )


@pytest.mark.slow
@pytest.mark.timeout(4000)
def test_killed_again_and_again_at_random(demo_data, tmp_path, whole):
    """kill -9 at random moments; every step is saved, so saving itself is often hit."""

    def often(config):
        config["optim"].update(max_epochs=10, checkpoint_every=1, eval_every=3)

    config = short_run(demo_data, often)
    expected = run_to_end(config, tmp_path / "whole")
    run, times, generator = tmp_path / "run", soak(200, 15), random.Random(0)
    run.mkdir()
    store = CheckpointStore(run / "checkpoints" / RUN)
    lost, newest, killed, finished, writing = [0], 0, 0, 0, 0
    seconds = 60 * soak(60, 10)  # a quiet machine needs 7 and 1
    until = time.monotonic() + seconds
    while killed < times:
        assert time.monotonic() < until, f"only {killed} kills in {seconds} s"
        begun = FORK.Event()
        processes = launch(config, run, hook=lambda trainer, begun=begun: begun.set())
        begun.wait(60)
        time.sleep(generator.uniform(0.0, 1.0))
        finished += processes[0].exitcode is not None
        kill(processes)
        assert processes[0].exitcode in (0, -signal.SIGKILL)
        killed += 1
        writing += any(store.directory.glob(".writing-*"))
        found = store.read_newest()
        if found is None:
            assert newest == 0
            continue
        step = found[1]["step"]
        assert step >= newest, "a checkpoint was lost"
        newest = step
        history = run / "logs" / "ndem_ocp.HistoryLogger" / RUN / "history.jsonl"
        if history.exists():
            last = max((line["step"] for line in read_history(history)), default=0)
            lost.append(max(0, last - step))
        if finished and newest == 60:  # done: from the start, in a fresh directory
            assert same_run(result(run), expected) == []
            run = tmp_path / f"run-{killed}"
            run.mkdir()
            store, newest, finished = CheckpointStore(run / "checkpoints" / RUN), 0, 0
    assert same_run(run_to_end(config, run), expected) == []
    leftovers = [p.name for p in (run / "checkpoints" / RUN).iterdir() if "writing" in p.name]
    assert leftovers == []
    observed(
        "checkpoints",
        f"kill -9 at random moments of a run that saves every step, {writing} of them while a file "
        "was being written",
        times,
        "every time a good checkpoint was found; the finished run equals the undisturbed one to "
        "the bit",
        f"steps done again: at most {max(lost)}, {statistics.mean(lost):.2f} on average",
    )


@pytest.mark.parametrize("at", soak([2, 6, 10, 17], [6, 10]))
def test_a_stop_waits_for_the_end_of_the_step_and_is_exact(demo_data, tmp_path, whole, at):
    config = short_run(demo_data)

    def hook(trainer):
        stopping.stop_on([signal.SIGUSR2])
        forward = trainer._forward

        def wrapped(batch):
            if trainer.step == at and trainer.model.training:
                os.kill(os.getpid(), signal.SIGUSR2)
            return forward(batch)

        trainer._forward = wrapped

    assert finish(launch(config, tmp_path, hook=hook), tmp_path) == 3
    saved = result(tmp_path)["newest"]
    assert saved["step"] == at
    assert same_run(run_to_end(config, tmp_path), whole()) == []
    observed(
        "checkpoints",
        f"SIGUSR2 within step {at}",
        1,
        "the step was finished and saved; resumed, equal to the bit",
        "nothing",
    )


def test_a_stop_during_validation_does_not_wait_for_its_end(demo_data, tmp_path, whole):
    config = short_run(demo_data)

    def hook(trainer):
        forward, seen = trainer._forward, []

        def wrapped(batch):
            if trainer.step == 10 and not trainer.model.training:
                seen.append(1)
                assert len(seen) < 2, "the second batch of the validation was begun"
                stopping.request_stop("test")
            return forward(batch)

        trainer._forward = wrapped

    assert finish(launch(config, tmp_path, hook=hook), tmp_path) == 3
    saved = result(tmp_path)["newest"]
    assert (saved["step"], saved["tail"]) == (10, {"evaluate": True})
    assert same_run(run_to_end(config, tmp_path), whole()) == []
    observed(
        "checkpoints",
        "a stop in the middle of a validation",
        1,
        "left at the next batch; the resumed run validates again; equal to the bit",
        "the part of the validation that was done",
    )


@pytest.mark.ddp
def test_a_stop_on_one_rank_stops_both_after_the_same_step(demo_data, tmp_path, whole):
    config = short_run(demo_data)

    def hook(trainer):
        forward = trainer._forward

        def wrapped(batch):
            if trainer.step == 4 and torch.distributed.get_rank() == 1:
                stopping.request_stop("test")
            return forward(batch)

        trainer._forward = wrapped

    assert finish(launch(config, tmp_path, ranks=2, hook=hook), tmp_path) == 3
    assert result(tmp_path)["newest"]["step"] == 4
    assert same_run(run_to_end(config, tmp_path, ranks=2), whole(2)) == []
    observed(
        "ranks",
        "a stop asked for on one of two ranks",
        1,
        "both stopped after the same step; resumed, equal to the bit",
        "nothing",
    )


def damage(path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "torn":
        data = data[: len(data) // 2]
    elif how == "empty":
        data = bytearray()
    elif how == "one bit":
        data[len(data) // 3] ^= 4
    else:
        data = bytearray(b"#!/bin/sh\n" * 1000)
    path.unlink()  # checkpoint.pt is a link to the same file
    path.write_bytes(data)


DAMAGES = {
    "torn": "cut off in the middle",
    "empty": "of no bytes",
    "one bit": "with one bit flipped",
    "foreign": "overwritten by another program's file",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_is_named_and_the_newest_good_one_is_used(
    demo_data, tmp_path, whole, how, caplog
):
    config = short_run(demo_data)
    finish(launch(config, tmp_path, hook=dying("forward", 14)), tmp_path)
    folder = tmp_path / "checkpoints" / RUN
    kept = sorted(path.name for path in folder.glob("checkpoint-*.pt"))
    assert kept == ["checkpoint-00000004.pt", "checkpoint-00000008.pt", "checkpoint-00000012.pt"]
    damage(folder / "checkpoint-00000012.pt", how)
    damage(folder / "checkpoint.pt", how)
    with caplog.at_level("INFO"):
        trainer = trainer_of(config, tmp_path, run_id=RUN)
        trainer.load_checkpoint(str(folder / "checkpoint.pt"))  # as fairchem's task does
    assert trainer.step == 8
    text = caplog.text
    assert "checkpoint-00000012.pt" in text
    assert "checkpoint.pt" in text
    assert same_run(run_to_end(config, tmp_path), whole()) == []
    observed(
        "checkpoints",
        f"the newest checkpoint {DAMAGES[how]}",
        1,
        "named in the log; the run went on from the one before; equal to the bit at the end",
        "the steps between the two, done again",
    )


def test_all_checkpoints_damaged_is_an_error_and_not_a_new_start(demo_data, tmp_path):
    config = short_run(demo_data)
    finish(launch(config, tmp_path, hook=dying("forward", 10)), tmp_path)
    folder = tmp_path / "checkpoints" / RUN
    for path in list(folder.glob("checkpoint*.pt")):
        damage(path, "torn")
    with pytest.raises(CheckpointError, match=r"no other checkpoint.*Move it away"):
        trainer_of(config, tmp_path, run_id=RUN).load_checkpoint(str(folder / "checkpoint.pt"))


def test_the_newest_checkpoint_of_the_run_wins_by_default(demo_data, tmp_path, caplog):
    config = short_run(demo_data)
    finish(launch(config, tmp_path, hook=dying("forward", 14)), tmp_path)
    older = str(tmp_path / "checkpoints" / RUN / "checkpoint-00000004.pt")
    for resume, expected in (("auto", 12), ("named", 4)):
        trainer = trainer_of(
            {**config, "task": {**config["task"], "resume": resume}}, tmp_path, run_id=RUN
        )
        trainer.load_checkpoint(older)
        with caplog.at_level("INFO"):
            trainer.resume.from_newest()
        assert trainer.step == expected, resume
    assert "has a newer checkpoint" in caplog.text
    # of another run, and newer than anything of this one
    other = trainer_of(config, tmp_path / "other", run_id=RUN)
    other.load_checkpoint(str(tmp_path / "checkpoints" / RUN / "checkpoint-00000012.pt"))
    other.resume.from_newest()
    assert other.step == 12


def test_resume_names_a_path(demo_data, tmp_path):
    config = short_run(demo_data)
    finish(launch(config, tmp_path, hook=dying("forward", 6)), tmp_path)
    config["task"]["resume"] = str(tmp_path / "checkpoints" / RUN / "checkpoint-00000004.pt")
    trainer = trainer_of(config, tmp_path / "new", run_id=RUN)
    trainer.resume.from_newest()
    assert trainer.step == 4
    config["task"]["resume"] = "nowhere.pt"
    with pytest.raises(ConfigError, match=r"task\.resume = 'nowhere\.pt'"):
        trainer_of(config, tmp_path / "new", run_id=RUN)


@pytest.mark.parametrize("key", ["keep_checkpoints", "max_bad_steps"])
@pytest.mark.parametrize("value", [0, "3", True, 1.5])
def test_settings_of_a_run_are_checked(demo_data, tmp_path, key, value):
    config = short_run(demo_data)
    config["task"][key] = value
    with pytest.raises(ConfigError, match=f"task.{key}"):
        trainer_of(config, tmp_path)


def test_only_the_last_checkpoints_stay(demo_data, tmp_path):
    config = short_run(demo_data)
    config["task"]["keep_checkpoints"] = 2
    config["optim"]["checkpoint_every"] = 2
    run_to_end(config, tmp_path)
    folder = tmp_path / "checkpoints" / RUN
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "best_checkpoint.pt",
        "checkpoint-00000016.pt",
        "checkpoint-00000018.pt",
        "checkpoint.pt",
        "checkpoints.json",
        "normalizers.pt",  # fairchem's own
    ]
    assert (folder / "checkpoint.pt").samefile(folder / "checkpoint-00000018.pt")
    newest = json.loads((folder / "checkpoints.json").read_text())["newest"]
    assert newest["step"] == 18
    assert newest["primary_metric"] == "forces_mae"


def test_a_run_shorter_than_its_interval_still_leaves_a_checkpoint(demo_data, tmp_path):
    config = short_run(demo_data)
    config["optim"].update(eval_every=1000, checkpoint_every=1000)
    assert run_to_end(config, tmp_path)["newest"]["step"] == resuming.STEPS


def test_raising_max_epochs_gives_the_schedule_of_the_longer_run(demo_data, tmp_path):
    config = short_run(demo_data)
    run_to_end(config, tmp_path)
    longer = copy.deepcopy(config)
    longer["optim"]["max_epochs"] = 5
    rates = {
        line["step"]: line["lr"]
        for line in run_to_end(longer, tmp_path)["history"]
        if line["split"] == "train" and "lr" in line
    }
    expected = {
        line["step"]: line["lr"]
        for line in run_to_end(longer, tmp_path / "longer")["history"]
        if line["split"] == "train" and "lr" in line
    }
    assert rates.keys() == expected.keys()
    assert max(rates) == 30
    for step in range(19, 31):
        assert rates[step] == expected[step], step
    assert rates[18] != expected[18]  # the shorter run's own schedule, to its end


def test_a_changed_learning_rate_counts(demo_data, tmp_path, caplog):
    config = short_run(demo_data)
    finish(launch(config, tmp_path, hook=dying("forward", 6)), tmp_path)
    changed = copy.deepcopy(config)
    changed["optim"]["lr_initial"] *= 2
    trainer, plain = (trainer_of(c, tmp_path, run_id=RUN) for c in (changed, config))
    with caplog.at_level("INFO"):
        trainer.resume.from_newest()
    plain.resume.from_newest()
    rates = [t.optimizer.param_groups[0]["lr"] for t in (trainer, plain)]
    assert rates[0] == pytest.approx(2 * rates[1])
    assert "optim.lr_initial was" in caplog.text


@pytest.mark.parametrize(
    ("batch", "ranks", "step", "twice"), [(2, 1, 8, 0), (8, 1, 2, 0), (3, 1, 5, 1), (4, 2, 2, 0)]
)
def test_another_batch_size_or_number_of_ranks_resumes_at_the_right_sample(
    demo_data, tmp_path, batch, ranks, step, twice
):
    """Step 4 of 6 has seen 16 of 22 samples; fairchem would go on from step 4 of any length."""
    config = short_run(demo_data)
    finish(launch(config, tmp_path, hook=dying("forward", 6)), tmp_path)
    config["optim"].update(batch_size=batch, max_epochs=1, eval_every=1000, checkpoint_every=1000)

    def hook(trainer):
        rank = torch.distributed.get_rank() if ranks > 1 else 0
        said = logging.FileHandler(tmp_path / f"log-{rank}.txt")
        logging.getLogger().addHandler(said)
        logging.getLogger().setLevel(logging.INFO)
        log = (tmp_path / f"seen-{rank}.txt").open("w")
        look = trainer.bad_steps.look_at

        def looked(batch, out):
            log.write("".join(f"{s}_{int(f)}\n" for s, f in zip(batch.sid, batch.fid)))
            log.flush()
            look(batch, out)

        trainer.bad_steps.look_at = looked

    assert finish(launch(config, tmp_path, ranks, hook), tmp_path) == 0
    (line,) = re.findall("Continuing from .*", (tmp_path / "log-0.txt").read_text())
    assert line.startswith(f"Continuing from step {step} of ")
    assert ", not exactly: " in line
    for name, before, now in (("batch size", 4, batch), ("number of ranks", 1, ranks)):
        assert (f"the {name} was {before} and is {now}" in line) == (before != now)
    assert (f"{twice} samples of this epoch are seen a second time" in line) == (twice > 0)
    seen = [name for r in range(ranks) for name in (tmp_path / f"seen-{r}.txt").read_text().split()]
    # the epoch's order: what an undisturbed epoch shows
    order_config = short_run(demo_data)
    order = order_of_epoch(order_config, tmp_path / "order")
    expected = order[16 - twice :]
    # several ranks fill the last step up with samples from the start of the order
    assert set(seen) - set(expected) <= set(order[: ranks * batch])
    assert set(expected) <= set(seen)
    assert len(seen) - len(expected) < ranks * batch
    observed(
        "checkpoints",
        f"resumed with batches of {batch} on {ranks} rank{'s'[: ranks - 1]} instead of 4 on one",
        1,
        f"went on from sample {16 - twice} of 22 and said that it is no longer exact, and why",
        f"nothing; {twice} of 22 samples seen twice" if twice else "nothing",
    )


def order_of_epoch(config, run_dir) -> list[str]:
    """Samples of the first epoch in the order in which they are shown."""
    trainer = trainer_of(config, run_dir, run_id=RUN)
    trainer.train_loader.hooks = None
    trainer.train_sampler.set_epoch_and_start_iteration(0, 0)
    return [f"{s}_{int(f)}" for batch in trainer.train_loader for s, f in zip(batch.sid, batch.fid)]


def test_checkpoints_hold_plain_values_and_name_their_averages(demo_data, tmp_path):
    run = run_to_end(short_run(demo_data), tmp_path)
    folder = tmp_path / "checkpoints" / RUN
    for name in ("checkpoint.pt", "best_checkpoint.pt"):
        torch.load(folder / name, weights_only=True)
        averages = run["newest" if name == "checkpoint.pt" else "best"]["ema"]
        assert len(averages["names"]) == len(averages["shadow_params"])
        assert averages["collected_params"] == []
        trained = dict(zip(averages["names"], averages["shadow_params"]))
        assert all(trained[n].shape == run["newest"]["state_dict"][n].shape for n in trained)
    best = run["best"]
    assert best["weights"] == "ema"
    for name, average in zip(best["ema"]["names"], best["ema"]["shadow_params"]):
        assert torch.equal(best["state_dict"][name], average), name
    assert any(
        not torch.equal(run["newest"]["state_dict"][n], a)
        for n, a in zip(run["newest"]["ema"]["names"], run["newest"]["ema"]["shadow_params"])
    )
    size = (folder / "best_checkpoint.pt").stat().st_size
    assert size < 0.45 * (folder / "checkpoint.pt").stat().st_size  # averages are not stored twice


def test_averages_are_found_by_name_whatever_their_order(demo_data, tmp_path):
    config = short_run(demo_data)
    run = run_to_end(config, tmp_path)["newest"]
    expected = dict(zip(run["ema"]["names"], run["ema"]["shadow_params"]))
    for key in ("names", "shadow_params"):
        run["ema"][key] = run["ema"][key][::-1]
    trainer = trainer_of(config, tmp_path / "new", run_id=RUN)
    trainer.load_checkpoint("shuffled.pt", run)
    for (name, _), shadow in zip(
        trainer._unwrapped_model.named_parameters(), trainer.ema.shadow_params
    ):
        assert torch.equal(shadow, expected[name]), name


def test_a_checkpoint_of_fairchems_own_trainer_is_resumed(demo_data, tmp_path, caplog):
    """Saved within a step, as fairchem does: its learning rate lags and is put right."""
    config = short_run(demo_data, coefficient=0.0)
    plain = trainer_of(config, tmp_path / "plain", name="equiformerv2_forces", run_id=RUN)
    resuming_steps = 8

    class Enough(Exception):
        pass

    save = plain.save

    def saving(*args, **kwargs):
        path = save(*args, **kwargs)
        if plain.step == resuming_steps:
            raise Enough
        return path

    plain.save = saving
    with pytest.raises(Enough):
        plain.train(disable_eval_tqdm=True)
    path = str(tmp_path / "plain" / "checkpoints" / RUN / "checkpoint.pt")
    trainer = trainer_of(config, tmp_path / "ours", run_id=RUN)
    with caplog.at_level("INFO"):
        trainer.load_checkpoint(path)
    assert trainer.step == resuming_steps
    assert "no state of the random number generators" in caplog.text
    trainer.train(disable_eval_tqdm=True)
    whole_rates = rates_of(run_to_end(config, tmp_path / "whole")["history"])
    logs = tmp_path / "ours" / "logs" / "ndem_ocp.HistoryLogger" / RUN
    ours = rates_of(read_history(logs))
    assert ours == {step: rate for step, rate in whole_rates.items() if step > resuming_steps}


def rates_of(history) -> dict[int, float]:
    return {h["step"]: h["lr"] for h in history if h["split"] == "train" and "lr" in h}


def test_an_old_checkpoint_with_objects_needs_unsafe(demo_data, tmp_path, caplog):
    config = short_run(demo_data)
    state = run_to_end(config, tmp_path)["newest"]
    state["config"]["old"] = Unusual()
    path = tmp_path / "old.pt"
    torch.save(state, path)
    trainer = trainer_of(config, tmp_path / "new", run_id=RUN)
    with pytest.raises(UnsafeError, match=r"old\.pt was not read.*Unusual.*task\.unsafe: True"):
        trainer.load_checkpoint(str(path))
    config["task"]["unsafe"] = True
    trainer = trainer_of(config, tmp_path / "new", run_id=RUN)
    with caplog.at_level("WARNING"):
        trainer.load_checkpoint(str(path))
    assert trainer.step == resuming.STEPS
    assert "unrestricted reader, because unsafe" in caplog.text


class Unusual:
    """An object that the restricted reader refuses."""


def test_another_models_optimizer_is_refused_by_name(demo_data, tmp_path):
    run_to_end(short_run(demo_data), tmp_path)

    def wider(config):
        config["model"]["backbone"]["num_layers"] = 2

    other = trainer_of(short_run(demo_data, wider), tmp_path / "new", run_id=RUN)
    path = tmp_path / "checkpoints" / RUN / "checkpoint.pt"
    with pytest.raises(ConfigError, match=r"only in this model: backbone\.blocks\.1.*init_from"):
        other.load_checkpoint(str(path))


def test_checkpoints_of_this_package_need_nothing_of_newer_torch(demo_data, tmp_path, monkeypatch):
    """fairchem's own pins have torch 2.4, whose restricted reader cannot be told more names."""
    run_to_end(short_run(demo_data), tmp_path)
    for name in ("get_unsafe_globals_in_checkpoint", "safe_globals"):
        monkeypatch.delattr(torch.serialization, name, raising=False)  # not there in torch 2.4
    newest = CheckpointStore(tmp_path / "checkpoints" / RUN).read_newest()
    assert newest is not None
    assert newest[1]["step"] == resuming.STEPS


def test_read_checkpoint_says_what_is_wrong(tmp_path):
    with pytest.raises(CheckpointError, match=r"missing\.pt: no such file"):
        read_checkpoint(tmp_path / "missing.pt")
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"not a trainer's checkpoint.*weights"):
        read_checkpoint(tmp_path / "other.pt")
