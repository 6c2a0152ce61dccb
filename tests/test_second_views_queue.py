"""ndem_ocp.bench.experiments.second_views: what it would train, without training it."""

from __future__ import annotations

import json
from unittest.mock import create_autospec

import pytest
from fairchem.core.common.flags import flags
from fairchem.core.common.utils import build_config

from conftest import ROOT
from fairchem_kit.report.sweep_results import summary
from ndem_ocp.bench.experiments import results_file, second_views, second_views_cases
from ndem_ocp.bench.experiments.second_views_cases import CASES, Molecule, Surfaces
from ndem_ocp.trainer.config import read_task


def test_every_case_has_a_name_and_a_folder_of_its_own():
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(set(case.arms) <= set(case.all_arms) and case.arms[0] == "plain" for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_settings_of_every_arm_are_valid(case, demo_data, monkeypatch):
    monkeypatch.setattr(Surfaces, "data", str(demo_data))
    for arm in case.arms:
        changes = [f"--{key}={value}" for key, value in case.overrides(arm).items()]
        args = flags.get_parser().parse_args(
            ["--mode", "train", "--cpu", "--config-yml", str(ROOT / case.config)]
        )
        config = build_config(args, changes)
        views = config["task"]["ndem"].get("second_views")
        of_arm = {
            "instead": case.views,
            "forces_only": case.views,
            **dict.fromkeys(("corrected", "small", "late", "trust"), f"{case.data}.corrected.lmdb"),
            "alone": f"{case.data}.alone.lmdb",
        }
        assert views == of_arm.get(arm)
        config["task"]["ndem"].pop("second_views", None)  # a file that is not there
        if views is None:
            assert read_task(config).settings is not None


def test_plain_training_takes_the_whole_budget():
    for case in (case for case in CASES if isinstance(case, Molecule)):
        per_epoch = -(-case.frames // 8)
        steps = {arm: case.overrides(arm)["optim.max_epochs"] * per_epoch for arm in case.arms}
        assert steps["plain"] == pytest.approx(case.plain_steps, abs=per_epoch)
        if "ndem" in steps:
            assert steps["ndem"] == pytest.approx(case.plain_steps / 1.6, abs=per_epoch)


def test_the_queue_trains_each_arm_and_what_it_starts_from(tmp_path, monkeypatch):
    monkeypatch.setattr(second_views, "ROOT", tmp_path)
    monkeypatch.setattr(second_views_cases.Molecule, "make_potential_set", lambda case, ndem: None)
    train = create_autospec(second_views.train_and_test)
    monkeypatch.setattr(second_views, "train_and_test", train)
    monkeypatch.setattr(second_views, "evaluate", lambda case, arm, seed, what, gpu: {})
    case = CASES[0]
    for arm in case.arms:
        second_views.run(case, arm, 1)
    trained = [(call.args[2], call.args[3]) for call in train.call_args_list]
    assert trained[:-2] == [(arm, 1) for arm in second_views_cases.ALL]
    assert trained[-2:] == [(f"{case.name}_potential", 0), ("pretrained", 1)]
    first, second = (call.args[0] for call in train.call_args_list[-2:])
    checkpoint = second.arms["pretrained"]["task.init_from.checkpoint"]
    assert checkpoint.endswith(f"{case.name}_potential-seed0/checkpoints/train/best_checkpoint.pt")
    (changes,) = first.arms.values()
    assert changes["dataset.train.src"] == f"{case.data}.potential/train"


def collected(runs: dict[str, dict[int, float]]) -> dict:
    """What is collected of runs on this machine: arm -> seed -> test error."""
    return {
        "data": {"train": "abc"},
        "hardware": {"cpu": "Xeon", "torch": "2.13"},
        "config_hash": dict.fromkeys(runs, "f00"),
        "metrics": ["mae"],
        "seeds": [0],
        "arms": {
            arm: results_file.with_evaluations(
                {
                    "overrides": {},
                    "runs": [{"seed": s, "test": {"mae": mae}} for s, mae in of_arm.items()],
                    "summary": {"mae": summary(list(of_arm.values()))},
                },
                {"curvature": [{"error": 10 * mae} for mae in of_arm.values()]},
            )
            for arm, of_arm in runs.items()
        },
    }


def test_runs_of_several_machines_add_up(tmp_path):
    path = tmp_path / "case.json"
    results_file.add(path, collected({"plain": {0: 1.0}, "instead": {0: 0.5}}))
    results_file.add(path, collected({"plain": {2: 3.0, 1: 2.0}}))
    other = {"cpu": "EPYC", "torch": "2.13"}
    results_file.add(path, {**collected({"ndem": {1: 2.5}, "plain": {1: 2.0}}), "hardware": other})
    found = json.loads(path.read_text())
    assert found["seeds"] == [0, 1, 2]
    assert results_file.seeds_of(path, "plain") == [0, 1, 2]
    assert results_file.seeds_of(path, "instead") == [0]
    assert results_file.seeds_of(path, "dens") == []
    assert set(found["arms"]) == set(found["config_hash"]) == {"plain", "instead", "ndem"}
    plain = found["arms"]["plain"]
    assert [run.pop("devices") for run in plain["runs"]] == [["Xeon"], ["EPYC"], ["Xeon"]]
    assert plain == collected({"plain": {0: 1.0, 1: 2.0, 2: 3.0}})["arms"]["plain"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"data": {"train": "xyz"}},
            r"case.json: .* data \(.*abc.*, now .*xyz.*\)\. Move",
        ),
        ({"hardware": {"cpu": "Xeon", "torch": "2.4"}}, r"torch \(2.13, now 2.4\)"),
        ({"config_hash": {"plain": "ba2"}}, r"config_hash.plain \(f00, now ba2\)"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path, change, message):
    path = tmp_path / "case.json"
    results_file.add(path, collected({"plain": {0: 1.0}}))
    before = path.read_bytes()
    with pytest.raises(results_file.OtherRuns, match=message):
        results_file.add(path, {**collected({"plain": {1: 1.0}}), **change})
    assert path.read_bytes() == before


def test_runs_in_the_results_are_not_repeated(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(second_views, "ROOT", tmp_path)
    case = CASES[0]
    path = second_views.results_path(case)
    path.parent.mkdir()
    results_file.add(path, collected({"plain": {0: 1.0, 1: 1.0}, "instead": {1: 1.0}}))
    done = []
    monkeypatch.setattr(second_views, "run", lambda case, arm, seed, gpu: done.append((arm, seed)))
    for name in ("make_data", "check_results", "write_results", "overrides"):
        monkeypatch.setattr(second_views, name, lambda *given: None)
    monkeypatch.setattr(second_views.os, "chdir", lambda path: None)
    words = ["--cases", case.name, "--arms", "plain", "instead", "--seeds", "0", "1"]
    monkeypatch.setattr("sys.argv", ["second_views", *words])
    assert second_views.main() == 0
    assert done == [("instead", 0)]
    monkeypatch.setattr("sys.argv", ["second_views", "--list", *words])
    assert second_views.main() == 0
    assert "3 of" in capsys.readouterr().out
