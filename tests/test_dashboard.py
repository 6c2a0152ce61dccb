"""``ndem dashboard``, and what W&B is given: panels, steps that never go back, evaluations."""

from __future__ import annotations

import json

import numpy as np
import pytest

import wandb_files
from fairchem_kit.history.logger import HistoryLogger, read_history
from fairchem_kit.report.dashboard import command
from fairchem_kit.report.dashboard.errors import DashboardError
from fairchem_kit.report.dashboard.panels import OC20_METRICS, OC20_SPLITS, sections
from fairchem_kit.report.page.evaluations import find_evaluations
from fairchem_kit.report.page.runs import find_runs
from ndem_ocp import cli
from test_report_page import evaluate, make_run


def keys_of(found) -> set[str]:
    return {key for section in found for panel in section.panels for key in panel.keys}


# --- panels --------------------------------------------------------------------------------------


def test_every_split_and_metric_of_oc20_has_its_panel():
    found = sections()
    assert keys_of(found) >= {f"{split}/{name}" for split in OC20_SPLITS for name in OC20_METRICS}
    assert found[0].name == "Validation: mean of the splits"
    assert found[0].is_open


def test_panels_show_what_a_run_logs(tmp_path):
    """Every key of a panel on training is in the log of a run with NDeM, or says why not."""
    run = make_run(tmp_path, "a")
    logged = {
        f"{line['split']}/{key}"
        for line in read_history(next(run.rglob("*.jsonl")))
        for key in line
    }
    found = sections(**command._what_they_log(find_runs([run])))
    asked = {key for key in keys_of(found) if not key.startswith("eval/")}
    not_in_this_run = {
        f"train/{name}"
        for name in (
            "ndem_coefficient", "grad_norm", "data_share_of_time", "ndem_share_of_time",
            "energy_mae_meV", "forces_mae_meV_per_A", "forces_cosine_similarity",
        )
    }  # fmt: skip
    assert asked - logged == not_in_this_run
    assert "val_ood_ads/forces_mae_meV_per_A" in asked


def test_second_views_have_panels_where_a_run_logs_them(tmp_path):
    logged = {
        "ndem_change_error_kcal_per_mol_per_A": 1.0, "ndem_change_size_kcal_per_mol_per_A": 2.0,
        "ndem_change_slope": 1.0, "ndem_change_cosine": 1.0, "ndem_share_of_atoms": 0.5,
    }  # fmt: skip
    plain = make_run(tmp_path, "plain", coefficient=0.0)
    assert not any("change" in key for key in keys_of(_panels_of(plain)))
    views = make_run(tmp_path, "views", logged=logged)
    assert {f"train/{name}" for name in logged} <= keys_of(_panels_of(views))
    (section,) = [found for found in _panels_of(views) if found.name.startswith("Second views")]
    assert section.panels[0].unit == "kcal/mol/Å per displaced atom"
    assert "train/ndem_change_size_eV_per_A" in keys_of(sections())


def _panels_of(run):
    return sections(**command._what_they_log(find_runs([run])))


def test_a_fraction_is_not_called_a_percentage():
    units = {panel.keys[0]: panel.unit for panel in sections()[0].panels}
    assert units["val_mean/energy_forces_within_threshold"] == "fraction"
    assert units["val_mean/forces_mae_meV_per_A"] == "meV/Å"


# --- the workspace, with W&B's own classes -------------------------------------------------------


@pytest.fixture
def workspaces():
    reason = "wandb-workspaces is an optional extra: pip install wandb-workspaces"
    return pytest.importorskip("wandb_workspaces.workspaces", reason=reason)


def test_the_specification_is_what_w_and_b_reads_back(workspaces, tmp_path, capsys):
    run = make_run(tmp_path, "a")
    out = tmp_path / "new" / "dashboard.json"
    assert cli.main(["dashboard", str(run), "--entity", "team", "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    assert (written["project"], written["entity"], written["name"]) == ("p", "team", "NDeM")
    again = tmp_path / "again.json"
    assert cli.main(["dashboard", "--from", str(out), "--out", str(again)]) == 0
    assert json.loads(again.read_text()) == written
    section = written["spec"]["section"]
    first = section["panelBankConfig"]["sections"][0]["panels"][0]["config"]
    assert first["metrics"] == ["val_mean/energy_mae_meV"]
    assert first["xAxis"] == "_step"
    assert section["runSets"][0]["filters"]["filters"][0]["value"] == ["train"]
    text = json.dumps(written)
    assert '"groupBy": "task.value.ndem.coefficient"' in text  # Table 4's curves side by side
    assert '"xAxis": "config:task.value.ndem.sigma_max"' in text  # Table 5's
    assert '"groupBy": "cmd.value.identifier", "groupAgg": "mean", "groupArea": "stderr"' in text


def test_a_dry_run_lists_the_panels_and_sends_nothing(workspaces, capsys, monkeypatch):
    monkeypatch.setattr(workspaces.Workspace, "save", lambda self: pytest.fail("it was sent"))
    assert cli.main(["dashboard", "--project", "oc20", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "NDeM: (your own)/oc20" in printed
    assert "Force MAE: val_ood_both/forces_mae_meV_per_A" in printed


def test_with_a_login_the_view_is_saved(workspaces, monkeypatch, capsys):
    sent = []

    def save(self):
        sent.append(self._to_model())

    monkeypatch.setattr(workspaces.Workspace, "url", "https://wandb.ai/team/oc20")
    monkeypatch.setattr("wandb.login", lambda **_: True)
    monkeypatch.setattr(workspaces.Workspace, "save", save)
    assert cli.main(["dashboard", "--project", "oc20", "--entity", "team"]) == 0
    assert (sent[0].entity, sent[0].project, sent[0].display_name) == ("team", "oc20", "NDeM")
    assert "team/oc20" in capsys.readouterr().out


def test_a_refusal_says_what_to_look_at(workspaces, monkeypatch, capsys):
    def refuse(self):
        raise RuntimeError("project not found")

    monkeypatch.setattr("wandb.login", lambda **_: True)
    monkeypatch.setattr(workspaces.Workspace, "save", refuse)
    assert cli.main(["dashboard", "--project", "oc20", "--entity", "team"]) == 2
    printed = capsys.readouterr().err
    assert "project not found" in printed
    assert "wandb sync" in printed


def test_without_a_login_the_message_says_what_to_do(workspaces, monkeypatch, capsys):
    monkeypatch.setattr("wandb.login", lambda **_: False)
    assert cli.main(["dashboard", "--project", "p"]) == 2
    assert "--out FILE" in capsys.readouterr().err


def test_a_file_of_something_else_is_refused(workspaces, tmp_path, capsys):
    path = tmp_path / "x.json"
    path.write_text("{}")
    assert cli.main(["dashboard", "--from", str(path)]) == 2
    assert "is not a file of ndem dashboard --out" in capsys.readouterr().err


def test_without_the_extra_the_message_names_it(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces", None)
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces.reports.v2", None)
    assert cli.main(["dashboard", "--project", "p", "--dry-run"]) == 2
    assert "pip install 'wandb-workspaces" in capsys.readouterr().err


def test_a_dashboard_is_of_one_project(tmp_path):
    make_run(tmp_path, "a")
    other = next(make_run(tmp_path, "b").rglob("run.json"))
    record = json.loads(other.read_text())
    record["config"]["logger"]["project"] = "q"
    other.write_text(json.dumps(record))
    with pytest.raises(DashboardError, match=r"different values of logger.project \(p, q\)"):
        command._setting(find_runs([tmp_path]), "project")


# --- what W&B is given ---------------------------------------------------------------------------


def logger_in(folder):
    logger = {"name": "x", "inner": "wandb", "project": "ndem-test"}
    cmd = {"logs_dir": str(folder), "timestamp_id": "one", "identifier": "name"}
    return HistoryLogger({"logger": logger, "cmd": cmd})


@pytest.fixture
def offline(monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield wandb
    wandb.finish()


def train(log, first, last, splits=("val", "val_ood")):
    for step in range(first, last + 1):
        log.log({"grad_norm": 1.0}, step, "train")
        log.log({"loss": 1 / step}, step, "train")
        for split in splits if step % 5 == 0 else ():
            log.log({"forces_mae": 1 / step}, step, split)


def test_steps_in_w_and_b_never_go_back_after_a_resume(offline, tmp_path):
    log = logger_in(tmp_path)
    train(log, 1, 9)
    train(log, 10, 10, splits=("val",))  # killed within the validation at step 10
    offline.finish()
    log = logger_in(tmp_path)  # from the checkpoint of step 8
    log.resumed(8, evaluates=False)
    train(log, 9, 12)
    offline.finish()
    files = sorted(tmp_path.rglob("*.wandb"))
    assert len(files) == 2
    rows = [row for file in files for row in wandb_files.history(file)]
    steps = [row["_step"] for row in rows]
    assert steps == sorted(set(steps)), "a step came back, or came twice"
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses == [1 / step for step in range(1, 13)]  # each once, none lost
    ood = [(row["_step"], row["val_ood/forces_mae"]) for row in rows if "val_ood/forces_mae" in row]
    # What the kill cut off is there, at the first step that W&B still takes.
    assert ood == [(5, 1 / 5), (11, 1 / 10)]
    history = read_history(tmp_path)  # the file has it at its own step
    assert [r["step"] for r in history if r["split"] == "val_ood"] == [5, 10]


def test_evaluations_go_into_the_run_they_are_of(offline, tmp_path, capsys):
    run = make_run(tmp_path, "ndem", steps=10)
    evaluate(run, run / "eval", np.random.default_rng(0))
    runs = find_runs([run])
    assert len(find_evaluations(runs, [])[0]) == 1
    out = tmp_path / "r.html"
    assert cli.main(["report", str(run), "--out", str(out), "--wandb"]) == 0
    assert "logged to W&B: train" in capsys.readouterr().out
    (file,) = run.rglob("*.wandb")
    (row,) = wandb_files.history(file)
    assert row["_step"] == 11
    assert row["eval/report._type" if "eval/report._type" in row else "eval/report"]
    assert {f"eval/val_id/{name}" for name in ("by_element", "by_force", "by_adsorbate")} <= {
        key.removesuffix("._type") for key in row
    }
    (html,) = run.rglob("media/html/eval/report*.html")
    assert "Error by element" in html.read_text(encoding="utf-8")
    table = json.loads(next(run.rglob("by_element*.table.json")).read_text())
    assert table["columns"] == [
        "element", "force MAE (eV/Å)", "predicting zero forces (eV/Å)", "count"
    ]  # fmt: skip
    assert [row[0] for row in table["data"]] == ["O", "Cu"]
