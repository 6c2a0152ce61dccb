"""Launching: where a rank stands, what it was asked for, how ranks meet."""

from __future__ import annotations

import argparse
import os
import threading
from pathlib import Path

import pytest

from conftest import ROOT
from fairchem_kit.launch.command import default_id, read_config, split_words
from fairchem_kit.launch.environment import without_group
from fairchem_kit.launch.errors import LaunchError
from fairchem_kit.launch.places import Place, SlurmJob, place_of, slurm_job, tasks_per_node
from fairchem_kit.launch.record import safe_id
from fairchem_kit.launch.rendezvous import meet
from fairchem_kit.launch.train import command_of
from ndem_ocp.cli import build_parser

SMALL = str(ROOT / "configs/oc20/small_ndem.yml")
TABLE4 = str(ROOT / "configs/md17/sweeps/table4.yml")
STEP = {
    "SLURM_JOB_ID": "12",
    "SLURM_JOB_NAME": "table4",
    "SLURM_ARRAY_JOB_ID": "10",
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "99",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4,2",
}


def train_args(*words: str) -> argparse.Namespace:
    args, unknown = build_parser().parse_known_args(["train", *words])
    args.unknown = unknown
    return args


def test_a_rank_of_an_srun_step():
    place = place_of({**STEP, "SLURM_RESTART_COUNT": "2"})
    assert (place.rank, place.world_size, place.nodes) == (5, 6, 2)
    assert (place.local_rank, place.local_size) == (1, 2)
    assert place.attempt == "slurm-12-2"
    assert place.rendezvous == "slurm-12-2-0"  # another step of the same start meets elsewhere
    assert place_of(STEP).rendezvous != place.rendezvous


@pytest.mark.parametrize("step", [None, str(0xFFFFFFFB), str(0xFFFFFFFA)])
def test_a_batch_script_or_an_interactive_shell_is_not_a_rank(step):
    inside = {key: value for key, value in STEP.items() if key != "SLURM_STEP_ID"}
    assert place_of(inside if step is None else {**inside, "SLURM_STEP_ID": step}) is None
    assert place_of({}) is None


def test_slurms_contradictions_are_named():
    assert tasks_per_node("2(x3),1", 4, 7) == [2, 2, 2, 1]
    assert tasks_per_node("", 2, 8) == [4, 4]
    for text, nodes, tasks in (("2(x3)", 3, 7), ("", 2, 3), ("two", 1, 2)):
        with pytest.raises(LaunchError, match="SLURM"):
            tasks_per_node(text, nodes, tasks)
    with pytest.raises(LaunchError, match="start it with srun"):
        place_of({key: value for key, value in STEP.items() if key != "SLURM_PROCID"})


def test_an_id_is_the_same_after_a_requeue_and_differs_between_jobs():
    first = default_id("arm", slurm_job(STEP))
    assert first == default_id("arm", slurm_job({**STEP, "SLURM_RESTART_COUNT": "3"}))
    assert first == "arm-10_3"
    assert default_id("", slurm_job(STEP)) == "table4-10_3"
    assert default_id("arm", slurm_job({**STEP, "SLURM_ARRAY_TASK_ID": "4"})) != first
    assert default_id("a", None) != default_id("b", None)


def test_an_id_is_a_file_name_and_a_wandb_id():
    assert safe_id("lambda 10/a:b#c?d%e") == "lambda-10-a-b-c-d-e"
    assert safe_id("coefficient=0.1,x-seed0") == "coefficient=0.1,x-seed0"


def test_arguments_of_a_command_in_any_order():
    words = ["--seed", "3", SMALL, "optim.batch_size=2", "--amp", "--task.ndem.coefficient=0"]
    config, options, overrides = split_words(words)
    assert config == Path(SMALL)
    assert options == ["--seed", "3", "--amp"]
    assert overrides == ["--optim.batch_size=2", "--task.ndem.coefficient=0"]


def test_yamls_words_are_values_as_in_a_file():
    words = ["a=false", "--b.c=null", "d=True", "e=nullable", "f=x=true"]
    assert split_words(words)[2] == ["--a=False", "--b.c=None", "--d=True", "--e=nullable",
                                     "--f=x=true"]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["--num-gpus=2"], "use --ranks"),
        (["--submit"], "ndem submit"),
        (["--sweep-yml", "x"], "--sweep"),
        (["--slurm-mem", "3"], "ndem submit"),
        (["--mode=predict"], "only trains"),
        (["a.yml", "b.yml"], "key=value"),
        (["a.yml", "--nothing"], "key=value"),
    ],
)
def test_arguments_that_are_refused(words, advice):
    with pytest.raises(LaunchError, match=advice):
        split_words(words)


def test_a_command_written_out_is_the_same_command(tmp_path):
    args = train_args(
        SMALL, "--cpu", "--run-dir", str(tmp_path), "--group", "g", "--seed", "4", "optim.lr=0.1"
    )
    command = command_of(args)
    assert command_of(train_args(*command.words())) == command
    assert command.line(2).startswith("ndem train ")
    assert "--ranks 2" in command.line(2)


def test_the_configuration_is_fairchems_with_our_ranks(tmp_path):
    words = [SMALL, "--cpu", "--id", "x", "--group", "g", "--seed=4", "optim.batch_size=3"]
    config = read_config(command_of(train_args(*words)), 6)
    assert (config["world_size"], config["distributed_backend"]) == (6, "gloo")
    assert (config["timestamp_id"], config["seed"], config["mode"]) == ("x", 4, "train")
    assert config["optim"]["batch_size"] == 3
    assert (config["submit"], config["logger"]["group"]) == (False, "g")
    gpu = read_config(command_of(train_args(SMALL, "logger=tensorboard")), 8)
    assert gpu["distributed_backend"] == "nccl"
    assert gpu["logger"] == {"name": "tensorboard"}
    with pytest.raises(LaunchError, match="no such file"):
        read_config(command_of(train_args("nowhere.yml")), 1)


def test_a_task_of_a_sweep(tmp_path):
    words = ["--sweep", TABLE4, "--task", "7", "--run-dir", str(tmp_path)]
    command = command_of(train_args(*words, "--id", "x"))
    assert command.run_dir == tmp_path / "coefficient=1-seed1"  # as ndem sweep has it
    assert command.options == ["--seed", "1", "--identifier", "coefficient=1"]
    assert command.overrides == ["--task.ndem.coefficient=1"]
    assert command.group == "table4"
    for wrong in (["--task", "15"], []):
        with pytest.raises(LaunchError, match="14 coefficient=100-seed2"):
            command_of(train_args("--sweep", TABLE4, *wrong))
    with pytest.raises(LaunchError, match=r"leave out .*small_ndem"):
        command_of(train_args(SMALL, *words))
    with pytest.raises(LaunchError, match="no configuration"):
        command_of(train_args("--cpu"))
    with pytest.raises(LaunchError, match="--sweep"):
        command_of(train_args(SMALL, "--task", "1"))


def test_ranks_meet_at_a_port_of_their_own(tmp_path, monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")
    for name in ("TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.setenv(name, "")

    def place(rank: int, start: str) -> Place:
        return Place(rank, 2, rank, 2, 1, start, start, True)

    found: dict[str, str] = {}

    def wait(start: str) -> None:
        meet(place(1, start), tmp_path, limit_s=30)
        found[start] = os.environ["MASTER_PORT"]

    meetings = []
    for start in ("first", "second"):
        waiting = threading.Thread(target=wait, args=[start])
        waiting.start()  # before rank 0, as happens
        meetings.append(meet(place(0, start), tmp_path))
        waiting.join(30)
        assert found[start] == str(meetings[-1].store.port)
    assert found["first"] != found["second"]
    assert not {"13356", "29400", "29500"} & set(found.values())
    for meeting in meetings:
        meeting.forget_port()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(LaunchError, match=r"Rank 0 has not published its port in .* within 0 s"):
        meet(place(1, "third"), tmp_path, limit_s=0.3)


def test_what_this_process_trains_is_not_passed_on(tmp_path):
    meeting = meet(Place(0, 1, 0, 1, 1, "", "", True), tmp_path)
    meeting.forget_port()
    own = {"MASTER_PORT", "RANK", "WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE"}
    assert own <= os.environ.keys()
    assert not own & without_group(os.environ).keys()


def test_a_job():
    assert slurm_job(STEP) == SlurmJob("12", "10_3", 0, "table4")
    assert slurm_job({}) is None
