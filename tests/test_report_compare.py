"""``ndem report`` of several runs: what may be compared, with what, and what each arm is."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re

import numpy as np
import pytest

from fairchem_kit.history.file import read_history
from fairchem_kit.report.page import about, ndem_curves
from fairchem_kit.report.page.arm import method
from fairchem_kit.report.page.build import Report
from fairchem_kit.report.page.by_group import groups_of_figures
from fairchem_kit.report.page.errors import ReportError
from fairchem_kit.report.page.evaluations import find_evaluations
from fairchem_kit.report.page.html import grouped, page
from fairchem_kit.report.page.runs import find_runs
from ndem_ocp import cli
from test_report_page import Page, evaluate, make_run

VIEWS = {
    "ndem_share_of_atoms": 0.5, "ndem_sigma_A": 0.004,
    "ndem_change_error_eV_per_A": 0.02, "ndem_change_size_eV_per_A": 0.05,
    "ndem_change_slope": 0.9, "ndem_change_cosine": 0.95,
}  # fmt: skip
POTENTIAL = {
    "spec": "torchani.models:ANI1ccx(periodic_table_index=True).ase()", "package": "torchani",
    "version": "2.2.4", "relative_error": 0.067, "scale": 1.02,
}  # fmt: skip


def second_views(config):
    config["task"]["ndem"].update(
        target="second_views", place=None, share={"0.0": 0.3, "0.5": 0.6},
        sigma_min=0.002, sigma_max={"0.0": 0.005, "1.0": 0.01}, second_views_of=POTENTIAL,
    )  # fmt: skip


def on(folder, text):
    """An edit of the configuration: validated on a set with this content."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.0000.lmdb").write_text(text)
    np.savez(folder / "metadata.npz", natoms=np.zeros(len(text)))

    def edit(config):
        config["val_dataset"] = {"src": str(folder)}

    return edit


def rows_of(report):
    """Cells of the result's table."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in _table(report)]


def _table(report):
    lines = report.markdown().splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("| arm |"))
    return itertools.takewhile(bool, lines[start + 2 :])


# --- validation sets, units, lengths -------------------------------------------------------------


def test_different_validation_data_is_marked_and_never_joined(tmp_path, capsys):
    for seed in range(2):
        make_run(tmp_path, "plain", seed, 0.0, edit=on(tmp_path / "a", "one"))
        make_run(tmp_path, "ndem", seed, edit=on(tmp_path / "b", "other"))
    out = tmp_path / "r.html"
    assert cli.main(["report", str(tmp_path), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "**Not comparable.** val: set A is" in printed
    assert "3 structures, content" in printed
    assert "(plain-seed0, plain-seed1); set B is" in printed
    assert "less plain" not in printed
    assert "No differences: no run of another arm has its seed and its validation data" in printed
    text = Page(out.read_text(encoding="utf-8")).text
    assert "Not comparable" in text
    assert text.index("Numbers of different sets are not comparable") < text.index("best step")
    assert "Differences" not in text
    report = Report(find_runs([tmp_path]))
    splits = {(row[0], row[3]) for row in rows_of(report) if row[0]}
    assert splits == {("plain", "val (main), set A"), ("ndem", "val (main), set B")}
    assert {row["set"] for row in csv.DictReader(io.StringIO(report.csv()))} == {"A", "B", ""}
    assert "Force MAE, val, set B" in text  # no figure has lines of both


def test_one_content_under_two_paths_is_one_set(tmp_path):
    make_run(tmp_path, "plain", 0, 0.0, edit=on(tmp_path / "a", "same"))
    make_run(tmp_path, "ndem", 0, edit=on(tmp_path / "copy", "same"))
    report = Report(find_runs([tmp_path]))
    assert report.not_comparable == []
    assert report.paired[1][0][:2] == ["ndem minus plain", "1"]


def test_one_path_whose_content_changed_is_two_sets(tmp_path):
    make_run(tmp_path, "plain", 0, 0.0, edit=on(tmp_path / "a", "before"))
    make_run(tmp_path, "ndem", 0, edit=on(tmp_path / "a", "since"))
    (note,) = Report(find_runs([tmp_path])).not_comparable
    assert note.count(str(tmp_path / "a")) == 2
    assert "6 structures" in note
    assert "5 structures" in note


def test_the_mean_over_a_changed_arm_is_one_row_per_set(tmp_path):
    make_run(tmp_path, "a", 0, edit=on(tmp_path / "x", "one"))
    make_run(tmp_path, "a", 1, edit=on(tmp_path / "y", "two"))
    rows = [row for row in rows_of(Report(find_runs([tmp_path]))) if "main" in row[3]]
    assert [(row[1], row[3][-5:]) for row in rows] == [("1", "set A"), ("1", "set B")]
    assert "±" not in rows[0][4]


def test_seeds_with_folds_of_their_own_are_compared_fold_by_fold(tmp_path):
    for seed in range(2):
        for name, coefficient in (("plain", 0.0), ("ndem", 1.0)):
            edit = on(tmp_path / f"fold{seed}", f"fold {seed}")
            make_run(tmp_path, name, seed, coefficient, edit=edit)
    assert Report(find_runs([tmp_path])).paired[1][0][:2] == ["ndem minus plain", "2"]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("first_n", 5, "first_n 5"), ("src", "elsewhere", "elsewhere, content not recorded")],
)
def test_a_selection_or_an_unknown_path_is_another_set(tmp_path, key, value, said):
    make_run(tmp_path, "plain", 0, 0.0)
    make_run(tmp_path, "ndem", 0, edit=lambda config: config["val_dataset"].update({key: value}))
    report = Report(find_runs([tmp_path]))
    assert said in report.not_comparable[0]
    assert report.paired[1] == []
    assert any(
        "No record of the content of the validation data: val of all runs; val_ood_ads" in c
        for c in report.cautions
    )


def test_a_mean_over_other_splits_is_another_set(tmp_path):
    make_run(tmp_path, "plain", 0, 0.0)
    run = make_run(tmp_path, "ndem", 0)
    path = next(run.rglob("history.jsonl"))
    lines = [line for line in path.read_text().splitlines() if "val_ood_ads" not in line]
    path.write_text("\n".join(lines) + "\n")
    report = Report(find_runs([tmp_path]))
    assert {row[3] for row in rows_of(report)} >= {"mean of splits, set A", "mean of splits, set B"}
    assert any("val_mean" in note and "val_ood_ads" in note for note in report.not_comparable)
    assert report.paired[1] == []


def test_different_units_are_marked(tmp_path):
    for name, coefficient, unit in (("plain", 0.0, "eV"), ("ndem", 1.0, "kcal/mol")):

        def edit(config, unit=unit):
            config["outputs"] = {"energy": {"unit": unit}, "forces": {"level": "atom"}}

        make_run(tmp_path, name, 0, coefficient, edit=edit)
    (note, *_) = Report(find_runs([tmp_path])).not_comparable
    assert "energy in eV" in note
    assert "energy in kcal/mol" in note


def test_different_lengths_are_said(tmp_path):
    make_run(tmp_path, "plain", 0, 0.0)
    make_run(tmp_path, "ndem", 0, steps=20)
    report = Report(find_runs([tmp_path]))
    assert "plain: 40 steps, 1 of 1 epochs; ndem: 20 steps" in report.markdown()
    assert [row[2] for row in rows_of(report) if row[0]] == ["30 of 40", "20 of 20"]


def test_a_run_that_was_continued_on_other_data_is_named(tmp_path):
    make_run(tmp_path, "a", edit=on(tmp_path / "x", "one"))
    run = make_run(tmp_path, "a", edit=on(tmp_path / "x", "other"))
    (found,) = find_runs([run])
    assert any("a-seed0 was continued on other data for val" in n for n in Report([found]).cautions)


def test_a_start_records_its_validation_data(tmp_path):
    run = make_run(tmp_path, "a", edit=on(tmp_path / "x", "one"))
    (start,) = json.loads(next(run.rglob("run.json")).read_text())["starts"]
    told = start["validation_sets"]["val"]
    assert (told["src"], told["structures"]) == (str(tmp_path / "x"), 3)
    assert re.fullmatch("[0-9a-f]{12}", told["hash"])


def test_evaluations_of_different_data_have_their_own_figures(tmp_path):
    rng = np.random.default_rng(0)
    for seed, content in enumerate("ab"):
        run = make_run(tmp_path, "ndem", seed, steps=10)
        evaluate(run, run / "eval", rng)
        path = run / "eval" / "metrics.json"
        told = json.loads(path.read_text())
        told["splits"]["val_id"].update(path="data/val_id", structures=12, data_hash=content)
        path.write_text(json.dumps(told))
    runs = find_runs([tmp_path])
    found, _ = find_evaluations(runs, [])
    report = Report(runs, found)
    drawn = groups_of_figures(report.arms, found)
    assert [name for name, _ in drawn] == ["val_id, set A", "val_id, set B"]
    assert any(note.startswith("ndem eval, val_id: set A is") for note in report.not_comparable)


# --- the baseline --------------------------------------------------------------------------------


def arms_named(folder, **coefficients):
    for name, coefficient in coefficients.items():
        make_run(folder, name, 0, coefficient, steps=10)
    return find_runs([folder])


def test_the_baseline_is_the_arm_named_plain_not_the_first(tmp_path):
    report = Report(arms_named(tmp_path, zero=0.0, ndem=1.0, plain=0.0))
    assert report.baseline.sentence == "Baseline: plain."
    assert [row[0] for row in report.paired[1]] == ["zero minus plain", "ndem minus plain"]


def test_the_requested_baseline(tmp_path, capsys):
    runs = arms_named(tmp_path, plain=0.0, ndem=1.0)
    report = Report(runs, baseline="ndem")
    assert [row[0] for row in report.paired[1]] == ["plain minus ndem"]
    head, rows = about.cost_rows(report.arms, "ndem")
    assert dict(zip(rows[1], head))["0.50"] == "relative to ndem"
    with pytest.raises(ReportError, match=r"no such arm\. There are: plain, ndem"):
        Report(runs, baseline="other")
    assert cli.main(["report", str(tmp_path), "--baseline", "x", "--out", "never.html"]) == 2
    assert "--baseline x: no such arm" in capsys.readouterr().err


def test_the_only_plain_arm_is_the_baseline(tmp_path):
    baseline = Report(arms_named(tmp_path, reference=0.0, ndem=1.0)).baseline
    assert baseline.arm == "reference"
    assert "the only arm of plain training" in baseline.sentence


def test_without_a_plain_arm_there_is_no_baseline(tmp_path, capsys):
    report = Report(arms_named(tmp_path, a=1.0, b=1.0))
    assert report.baseline.arm is None
    assert report.paired[1] == []
    assert "No baseline, so no differences" in report.markdown()
    assert not any("relative" in cell for cell in about.cost_rows(report.arms, None)[0])


# --- what an arm is, and second views ------------------------------------------------------------


def test_the_caption_of_an_arm_of_second_views(tmp_path):
    (run,) = find_runs([make_run(tmp_path, "views", edit=second_views, logged=VIEWS)])
    assert method(run) == (
        "ndem, target second_views, replacing structures, coefficient 1, "
        "share 0.3 at 0 %, 0.6 at 50 % of training, sigma_min 0.002 Å, "
        "sigma_max 0.005 Å at 0 %, 0.01 Å at 100 % of training, "
        "potential ANI1ccx(periodic_table_index=True).ase() (torchani 2.2.4), "
        "relative error of its force changes 6.7 %"
    )
    assert f"- views: {method(run)}\n" in Report([run]).markdown()
    assert method(run) in Page(Report([run])._result()).text


def test_a_schedule_of_sigma_has_the_quarters_of_its_whole_range(tmp_path):
    (run,) = find_runs([make_run(tmp_path, "views", edit=second_views)])
    assert ndem_curves.quarters_of(run)[0] == "0.002 to 0.004 Å"
    assert ndem_curves.quarters_of(run)[3] == "0.008 to 0.01 Å"


def test_second_views_have_their_panels_and_no_empty_ones(tmp_path):
    make_run(tmp_path, "plain", 0, 0.0)
    make_run(tmp_path, "views", 0, edit=second_views, logged=VIEWS)
    text = Page(Report(find_runs([tmp_path])).page()).text
    for wanted in (
        "Second views", "views: size of the change", "eV/Å per displaced atom",
        "Slope of predicted over given change", "Direction of the change", "Displaced atoms",
    ):  # fmt: skip
        assert wanted in text
    assert "Noise recovered" not in text
    assert "NDeM loss" not in text
    assert ndem_curves.second_views({"plain": find_runs([tmp_path / "plain-seed0"])}) == []


def test_a_single_line_names_its_arm_where_there_are_others(tmp_path):
    make_run(tmp_path, "plain", 0, 0.0)
    make_run(tmp_path, "views", 0, edit=second_views, logged=VIEWS)
    slope = ndem_curves.second_views(Report(find_runs([tmp_path])).arms)[1]
    assert ">views<" in slope.svg
    (ndem,) = find_runs([make_run(tmp_path / "other", "ndem", 0)])
    noise = ndem_curves.recovered({"plain": find_runs([tmp_path / "plain-seed0"]), "ndem": [ndem]})
    assert "Noise not recovered, by sigma: ndem" in noise[0].svg


def test_a_heading_without_figures_is_left_out():
    assert grouped([("val_id", [])]) == ""


def test_an_empty_column_of_costs_is_left_out(tmp_path):
    runs = find_runs([make_run(tmp_path, "a")])
    assert "waiting for data (%)" not in about.cost_rows({"a": runs}, None)[0]


def test_tables_are_reached_by_keyboard_and_show_that_they_scroll(tmp_path):
    result = Report(find_runs([make_run(tmp_path, "a")]))._result()
    text = page("title", "", [("Result", result)])
    tables = re.findall(r'<div class="wide"[^>]*>', text)
    assert tables
    assert all('tabindex="0"' in tag and 'role="region"' in tag for tag in tables)
    assert "scroll %E2%86%92" in text


def test_a_real_log_of_second_views_has_its_panels(tmp_path):
    """Names as the method logs them, in another unit."""
    import torch

    from ndem_ocp.method.diagnostics import change_diagnostics
    from ndem_ocp.method.noise import Noise, ViewLabels

    ones = torch.ones(2, 3)
    labels = ViewLabels(ones, torch.zeros(1), torch.zeros(2))
    yes = torch.ones(2, dtype=torch.bool)
    noise = Noise(eps=ones, sigma=torch.ones(2), moved=yes, viewed=yes, labels=labels)
    tallies = change_diagnostics(ones, noise, yes, "kcal/mol")
    logged = {name: tally.total / tally.weight for name, tally in tallies.items()}
    run = make_run(tmp_path, "views", edit=second_views, logged=logged)
    assert logged.keys() <= read_history(next(run.rglob("*.jsonl")), "train")[0].keys()
    drawn = ndem_curves.second_views(Report(find_runs([run])).arms)
    assert len(drawn) == 3
    assert "kcal/mol/Å per displaced atom" in drawn[0].svg
