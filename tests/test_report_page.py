"""``ndem report``: which runs are found, what is joined, what the page and its tables say."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fairchem_kit.evaluation import Samples
from fairchem_kit.evaluation.samples import write_samples
from fairchem_kit.history.logger import HistoryLogger
from fairchem_kit.report.metrics import unit_text, validation_metrics
from fairchem_kit.report.page.about import facts
from fairchem_kit.report.page.build import Report
from fairchem_kit.report.page.by_group import groups_of_figures
from fairchem_kit.report.page.errors import ReportError
from fairchem_kit.report.page.evaluations import (
    by_adsorbate,
    by_element,
    by_force,
    find_evaluations,
)
from fairchem_kit.report.page.html import definitions, page
from fairchem_kit.report.page.runs import arms_of, find_runs
from fairchem_kit.report.page.series import Curve, band, curve, mean_curve
from ndem_ocp import cli

EVERY = 5


def make_run(
    folder: Path,
    name: str,
    seed: int = 0,
    coefficient: float = 1.0,
    steps: int = 40,
    offset: float = 0.0,
    edit: Callable[[dict], None] | None = None,
    logged: dict[str, float] | None = None,
) -> Path:
    """What a run leaves, without training: written by the logger that writes it in training.

    ``edit`` changes the configuration; ``logged`` is in the training log in the place of the
    auxiliary loss and what goes with it.
    """
    run_dir = folder / f"{name}-seed{seed}"
    config = {
        "logger": {"name": "ndem_ocp.HistoryLogger", "inner": None, "project": "p"},
        "cmd": {
            "logs_dir": str(run_dir / "logs/ndem_ocp.HistoryLogger/train"),
            "identifier": name,
            "timestamp_id": "train",
            "print_every": EVERY,
            "seed": seed,
        },
        "task": {
            "ndem": {
                "objective": "ndem", "coefficient": coefficient, "sigma_min": 0.0,
                "sigma_max": 0.1, "corrupt_ratio": 0.5, "norm": "l2mae",
            }
        },
        "model": {"name": "hydra", "backbone": {"model": "equiformer_v2_backbone"}},
        "dataset": {"src": "data/train"},
        "val_dataset": {"src": "data/val_id"},
        "optim": {"batch_size": 4, "max_epochs": 1, "ema_decay": 0.99},
        "evaluation_metrics": {"primary_metric": "forces_mae"},
    }  # fmt: skip
    if edit is not None:
        edit(config)
    log = HistoryLogger(config)
    log.log_summary({"num_params": 31_060_000})
    for step in range(1, steps + 1):
        metrics = {"loss": 1 / step, "forces_mae": 1 / step, "lr": 1e-3, "epoch": step / steps}
        if logged is not None:
            metrics |= logged
        elif coefficient:
            metrics |= {
                "ndem_loss": 0.5, "ndem_share_of_loss": 0.01, "ndem_noise_cosine": 0.1,
                "ndem_noise_error_A": 0.03, "ndem_noise_size_A": 0.04, "ndem_sigma_A": 0.03,
                "ndem_curvature_eV_per_A2": 2.0,
                **{f"ndem_unrecovered_sigma_{n}of4": n / 4 for n in range(1, 5)},
            }  # fmt: skip
        log.log(metrics, step, "train")
        if step % EVERY == 0:
            costs = {"s_per_step": 0.2 * (1 + coefficient), "atoms_per_s": 100.0, "memory_GB": 2.0}
            log.log(costs, step, "train")
        if step % 10 == 0:
            for index, split in enumerate(("val", "val_ood_ads", "val_mean")):
                error = 1 / step + 0.1 * index + offset + (0.5 if step == 40 else 0)
                values = {
                    "energy_mae": error, "energy_mae_meV": 1000 * error, "forces_mae": error,
                    "forces_mae_meV_per_A": 1000 * error, "forces_cosine_similarity": 0.5,
                    "energy_forces_within_threshold": 0.25, "loss": 1.0,
                }  # fmt: skip
                log.log(values, step, split)
    return run_dir


@pytest.fixture
def sweep(tmp_path):
    """Two arms, three seeds, as ndem sweep and ndem submit leave them."""
    for seed in range(3):
        make_run(tmp_path, "ndem", seed, offset=-0.01 * seed)
        make_run(tmp_path, "plain", seed, coefficient=0.0, offset=0.02)
    return tmp_path


def evaluate(run_dir: Path, out: Path, rng: np.random.Generator) -> Samples:
    """Files of ndem eval for a run's checkpoint."""
    frames, atoms = 12, 8
    label = rng.normal(size=(frames * atoms, 3)).astype(np.float32)
    energy = rng.normal(size=frames)
    samples = Samples(
        {
            "index": np.arange(frames),
            "sid": np.array([str(n) for n in range(frames)], dtype=object),
            "fid": np.array(["0"] * frames, dtype=object),
            "natoms": np.full(frames, atoms),
            "free_atoms": np.full(frames, atoms - 2),
            "formula": np.array(["Cu7O"] * frames, dtype=object),
            "adsorbate": np.array(["O", "HO", ""] * (frames // 3), dtype=object),
            "energy_label": energy,
            "energy_prediction": energy + 0.1,
            "energy_error": np.full(frames, 0.1),
            "force_mae": np.full(frames, 0.2),
        },
        {
            "structure": np.repeat(np.arange(frames), atoms),
            "atomic_numbers": np.tile(np.array([29] * 7 + [8], dtype=np.uint8), frames),
            "tags": np.tile(np.array([0, 0, 1, 1, 1, 1, 1, 2], dtype=np.int8), frames),
            "free": np.tile(np.array([False] * 2 + [True] * 6), frames),
            "force_label": label,
            "force_prediction": label + np.float32(0.2),
        },
    )
    out.mkdir(parents=True)
    write_samples(out, "val_id", samples)
    about = {
        "checkpoint": {
            "path": str(run_dir / "checkpoints/train/best_checkpoint.pt"),
            "run": "train",
            "identifier": "ndem",
            "weights": "ema",
        },
        "units": {"energy": "eV", "forces": "eV/A"},
        "splits": {"val_id": {"metrics": {"energy_mae": 0.1}}},
    }
    (out / "metrics.json").write_text(json.dumps(about))
    return samples


class Page(HTMLParser):
    """Addresses, scripts and unclosed elements of a page."""

    VOID = ("meta", "br", "img", "input", "hr", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


# --- the command ---------------------------------------------------------------------------------


def test_the_command_writes_a_page_and_both_tables(sweep, tmp_path, capsys):
    out = tmp_path / "out" / "meeting.html"
    evaluate(sweep / "ndem-seed0", sweep / "ndem-seed0" / "eval", np.random.default_rng(0))
    assert cli.main(["report", str(sweep), "--out", str(out), "--title", "Group meeting"]) == 0
    page = Page(out.read_text(encoding="utf-8"))
    assert page.open == []
    assert "script" not in page.tags
    assert page.addresses
    assert all(a.startswith(("#", "data:")) for a in page.addresses), "a page that needs a network"
    assert "Group meeting" in page.text
    assert page.tags.count("svg") > 15
    printed = capsys.readouterr().out
    assert out.with_suffix(".md").read_text().splitlines()[2] in printed
    assert "not in the report: plain-seed0, plain-seed1, plain-seed2, ndem-seed1" in printed


def test_the_table_is_mean_and_spread_of_each_runs_best_step(sweep):
    report = Report(find_runs([sweep]))
    rows = [line.split(" | ") for line in report.markdown().splitlines() if line.startswith("| ")]
    assert rows[0][4:6] == ["Energy MAE (meV)", "Force MAE (meV/Å)"]
    plain, ndem = rows[2], rows[5]
    told = [cell.strip("| ") for cell in plain[:4]]
    assert told == ["plain", "3", "30 of 40", "val (main)"]
    assert plain[4].startswith("53.33 ± ")
    error = 1000 * (1 / 30 - 0.01 * np.arange(3))
    assert ndem[5] == f"{error.mean():.4g} ± {error.std(ddof=1):.2g}"
    assert plain[7] == "25 ± 0"  # EFwT in per cent
    assert any("ndem minus plain" in row[0] and row[1] == "3" for row in rows)


def test_the_csv_has_every_run_and_split_in_full(sweep):
    rows = list(csv.DictReader(io.StringIO(Report(find_runs([sweep])).csv())))
    assert len(rows) == 6 * 3
    row = next(r for r in rows if (r["arm"], r["seed"], r["split"]) == ("ndem", "1", "val_mean"))
    assert float(row["forces_mae_meV_per_A"]) == pytest.approx(1000 * (1 / 30 + 0.2 - 0.01))
    assert (row["step"], float(row["s_per_step"])) == ("30", 0.4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such file or directory"),
        (["."], "logger.name: ndem_ocp.HistoryLogger"),
        (["RUN", "--out", "page.txt"], "name it page.txt.html"),
        (["RUN", "--eval", "."], "no metrics.json of ndem eval"),
        (["RUN", "--wandb"], "run ndem eval first"),
    ],
)
def test_mistakes_are_a_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    run = make_run(tmp_path / "runs", "a")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    given = [str(run) if word == "RUN" else word for word in arguments]
    assert cli.main(["report", *given]) == 2
    assert message in capsys.readouterr().err


# --- runs ----------------------------------------------------------------------------------------


def test_runs_are_found_by_run_folder_log_folder_or_file(tmp_path):
    run = make_run(tmp_path, "a")
    logs = run / "logs/ndem_ocp.HistoryLogger/train"
    for path in (tmp_path, run, logs, logs / "history.jsonl"):
        (found,) = find_runs([path])
        assert (found.run_dir, found.run_id) == (run, "train")
    assert len(find_runs([tmp_path, run])) == 1  # named twice, read once


def test_a_validation_alone_is_not_a_run(tmp_path):
    run = make_run(tmp_path, "a")
    other = HistoryLogger({"logger": {}, "cmd": {"logs_dir": str(run / "logs/x/validate")}})
    other.log({"forces_mae": 1.0}, 0, "val")
    assert [found.run_id for found in find_runs([run])] == ["train"]


def test_arms_are_named_by_folder_plain_first(sweep):
    arms = arms_of(find_runs([sweep]))
    assert list(arms) == ["plain", "ndem"]
    assert [run.seed for run in arms["ndem"]] == [0, 1, 2]


def test_runs_that_differ_in_more_than_the_seed_are_named(sweep):
    record = sweep / "ndem-seed2/logs/ndem_ocp.HistoryLogger/train/run.json"
    told = json.loads(record.read_text())
    told["config"]["task"]["ndem"]["sigma_max"] = 0.3
    record.write_text(json.dumps(told))
    notes = Report(find_runs([sweep])).cautions
    assert any("ndem-seed2 is not a repetition" in n and "sigma_max was 0.1" in n for n in notes)


def test_a_run_without_its_record_is_shown_with_a_note_on_what_is_missing(tmp_path):
    run = make_run(tmp_path, "a")
    (run / "logs/ndem_ocp.HistoryLogger/train/run.json").unlink()
    report = Report(find_runs([run]))
    assert "no run.json" in " ".join(report.missing)
    assert "no configuration was found" in " ".join(report.missing)
    assert ("commit", "not recorded") in facts(report.runs[0])


def test_a_shorter_run_of_an_arm_is_named(sweep):
    make_run(sweep, "ndem", 3, steps=20)
    notes = " ".join(Report(find_runs([sweep])).cautions)
    assert "ndem-seed3 has 20 steps so far, others of its arm 40" in notes


def test_the_page_shows_what_ran(tmp_path):
    text = str(facts(find_runs([make_run(tmp_path, "a")])[0]))
    for wanted in (
        "ndem, target isotropic (c·eps), in addition to the structures, coefficient 1, "
        "sigma 0 to 0.1 Å",
        "31.06 M parameters",
        "train: data/train; val: data/val_id",
        "moving average (EMA), decay 0.99",
        "step 30, by forces_mae on val",
        "torch",
    ):
        assert wanted in text


def test_every_start_of_a_run_is_recorded(tmp_path):
    for _ in range(2):
        run = make_run(tmp_path, "a", steps=5)
    (found,) = find_runs([run])
    assert len(found.record["starts"]) == 2
    assert {"commit", "hardware", "date", "ranks"} <= found.record["starts"][1].keys()
    assert found.record["summary"] == {"num_params": 31_060_000}


# --- curves --------------------------------------------------------------------------------------


def test_training_curves_are_of_the_printed_steps(tmp_path):
    (run,) = find_runs([make_run(tmp_path, "a")])
    assert curve(run, "train", "loss").x.tolist() == list(range(5, 41, 5))
    assert curve(run, "val", "forces_mae", factor=2).y[0] == pytest.approx(0.2)
    assert len(curve(run, "val", "nothing")) == 0


def test_a_band_is_the_confidence_interval_of_the_mean():
    rows = np.array([[1.0], [2.0], [4.0]])
    low, high = band(rows)
    half = 4.3027 * rows.std(ddof=1) / np.sqrt(3)  # Student's t, two degrees of freedom
    assert (low[0], high[0]) == pytest.approx((7 / 3 - half, 7 / 3 + half), rel=1e-4)
    assert [float(limit[0]) for limit in band(rows[:2])] == [1.0, 2.0]


def test_means_are_over_the_steps_that_all_runs_have():
    a = Curve(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0]))
    b = Curve(np.array([2.0, 3.0]), np.array([4.0, 5.0]))
    times = [Curve(10 * a.x, a.y), Curve(20 * b.x, b.y)]
    joined = mean_curve([a, b])
    assert (joined.x.tolist(), joined.y.tolist()) == ([2, 3], [3, 4])
    assert mean_curve([a, b], times).x.tolist() == [30, 45]
    assert mean_curve([a]).low is None
    assert len(mean_curve([])) == 0


def test_each_shows_every_run_separately(sweep):
    report = Report(find_runs([sweep]), compare=False)
    assert list(report.arms) == [
        f"{arm}-seed{seed}" for arm in ("ndem", "plain") for seed in range(3)
    ]
    assert report.title.startswith("6 arms: ")


# --- evaluations ---------------------------------------------------------------------------------


def test_evaluations_are_found_by_their_checkpoint_and_drawn(sweep):
    rng = np.random.default_rng(0)
    evaluate(sweep / "ndem-seed0", sweep / "ndem-seed0" / "eval", rng)
    evaluate(sweep / "ndem-seed1", sweep / "elsewhere", rng)
    runs = find_runs([sweep])
    found, notes = find_evaluations(runs, [sweep / "elsewhere"])
    assert sorted(e.run.seed for e in found) == [0, 1]
    assert notes == []
    drawn = groups_of_figures(Report(runs, found).arms, found)
    assert [split for split, _ in drawn] == ["val_id"]
    text = Page("".join(figure.svg + figure.caption for figure in drawn[0][1])).text
    for title in (
        "Error by element",
        "Error by size of the true force",
        "Energy error by adsorbate",
    ):
        assert title in text
    assert "MAE 0.2 eV/Å over 216 values" in text
    assert "Free atoms: O: 12, Cu: 60." in text


def test_evaluations_have_a_table_with_the_error_of_no_forces(sweep):
    rng = np.random.default_rng(0)
    samples = [evaluate(sweep / f"ndem-seed{n}", sweep / f"ndem-seed{n}/eval", rng) for n in (0, 1)]
    runs = find_runs([sweep])
    report = Report(runs, find_evaluations(runs, [])[0])
    free = samples[0].atoms["free"]
    shares = [20 / np.abs(s.atoms["force_label"][free]).mean() for s in samples]
    head, rows = report.evaluated
    assert head == ["arm", "runs", "split", "Energy MAE (unit of the data)", "% of zero forces"]
    assert rows == [
        ["ndem", "2", "val_id", "0.1 ± 0", f"{np.mean(shares):.4g} ± {np.std(shares, ddof=1):.2g}"]
    ]
    for text in (Page(report.page()).text, report.markdown()):
        assert rows[0][-1] in text
        assert "the error of predicting zero forces" in text


def test_an_evaluation_of_another_run_is_left_out_and_named(sweep, tmp_path):
    evaluate(tmp_path / "gone", sweep / "elsewhere", np.random.default_rng(0))
    (sweep / "gone").mkdir()
    found, notes = find_evaluations(find_runs([sweep]), [sweep / "elsewhere"])
    assert found == []
    assert "of another run" in notes[0]


def say_of(folder, split, when, **checkpoint):
    """Rename the split of an evaluation, and change its checkpoint and its time."""
    file = folder / "metrics.json"
    said = json.loads(file.read_text())
    said["checkpoint"].update(checkpoint)
    said["splits"] = {split: {**said["splits"]["val_id"], "path": f"data/{split}"}}
    file.write_text(json.dumps(said))
    for part in folder.glob("val_id.*"):
        part.rename(folder / part.name.replace("val_id", split, 1))
    os.utime(file, (when, when))


def test_a_later_evaluation_of_one_split_does_not_hide_the_others(sweep):
    rng = np.random.default_rng(0)
    run = sweep / "ndem-seed0"
    evaluate(run, run / "eval", rng)
    say_of(run / "eval", "val", when=1, step=30, sha256="a")
    evaluate(run, run / "eval2", rng)  # a copy of the same checkpoint, as model.pt of ndem fit
    say_of(run / "eval2", "test", 2, step=30, sha256="b", path=str(run / "model.pt"))
    found, notes = find_evaluations(find_runs([sweep]), [])
    assert sorted(split for e in found for split in e.splits) == ["test", "val"]
    assert notes == []
    evaluate(run, run / "eval3", rng)
    say_of(run / "eval3", "val", 3, step=30, sha256="a")
    found, notes = find_evaluations(find_runs([sweep]), [])
    assert {e.folder.name: e.splits for e in found} == {"eval3": ["val"], "eval2": ["test"]}


def test_an_evaluation_of_older_weights_is_left_out_and_named(sweep):
    rng = np.random.default_rng(0)
    run = sweep / "ndem-seed0"
    for number, step in ((1, 20), (2, 30)):
        evaluate(run, run / f"eval{number}", rng)
        say_of(run / f"eval{number}", f"split{number}", number, step=step)
    found, notes = find_evaluations(find_runs([sweep]), [])
    assert [e.splits for e in found] == [["split2"]]
    assert len(notes) == 1
    assert f"{run / 'eval1'} is an evaluation of ndem-seed0 at step 20" in notes[0]


def test_damaged_files_of_an_evaluation_are_named(sweep, capsys):
    run = sweep / "ndem-seed0"
    evaluate(run, run / "eval", np.random.default_rng(0))
    (run / "eval" / "val_id.samples.csv").unlink()
    _, notes = find_evaluations(find_runs([sweep]), [])
    assert any("val_id.samples.csv is missing" in note for note in notes)
    file = run / "eval" / "metrics.json"
    for change in ({"units": [1]}, {"splits": {"val_id": {"metrics": {"energy_mae": "x"}}}}):
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
        with pytest.raises(ReportError, match=r"not a metrics.json of ndem eval, or it is damaged"):
            find_evaluations(find_runs([sweep]), [run / "eval"])


def test_a_history_with_a_step_that_is_no_number_is_refused_or_cut(tmp_path):
    run = make_run(tmp_path, "ndem", 0, steps=10)
    (file,) = run.rglob("history.jsonl")
    text = file.read_text()
    file.write_text(text + '{"step": "x", "split": "val"}\n')  # as a line that a kill left
    assert find_runs([run])[0].steps == 10
    file.write_text('{"step": NaN, "split": "val"}\n' + text)
    with pytest.raises(ReportError, match="line 1: not a record of a history"):
        find_runs([run])


def test_errors_by_group_are_means_over_their_atoms(tmp_path):
    samples = evaluate(tmp_path / "run", tmp_path / "eval", np.random.default_rng(1))
    elements = by_element(samples)
    assert elements.names == ["O", "Cu"]
    assert elements.counts.tolist() == [12, 60]
    assert elements.values == pytest.approx([0.2, 0.2], rel=1e-5)
    free = samples.atoms["free"]
    oxygen = free & (samples.atoms["atomic_numbers"] == 8)
    assert elements.nothing[0] == pytest.approx(np.abs(samples.atoms["force_label"][oxygen]).mean())
    forces = by_force(samples)
    assert forces.names[-1] in ("2 to 5", "1 to 2")
    assert (forces.counts >= 10).all()
    assert (np.diff(forces.nothing) > 0).all()  # larger forces, larger error of predicting none
    adsorbates = by_adsorbate(samples, "energy_error")
    assert (adsorbates.names, adsorbates.counts.tolist()) == (["HO", "O"], [4, 4])


# --- names ---------------------------------------------------------------------------------------


def test_names_units_and_direction_of_metrics():
    names = [
        "loss", "epoch", "forces_mae", "forces_mae_meV_per_A", "energy_mae", "energy_mae_meV",
        "energy_forces_within_threshold", "forces_cosine_similarity", "gap_mae",
    ]  # fmt: skip
    found = validation_metrics(names)
    assert [metric.label for metric in found] == [
        "Energy MAE (meV)",
        "Force MAE (meV/Å)",
        "Force cosine",
        "EFwT (%)",
        "Gap MAE (unit of the data)",
    ]
    assert unit_text("kcal_per_mol_A") == "kcal/mol/Å"
    assert unit_text("a0_3") == "a0^3"


def test_text_of_users_is_escaped():
    text = page("a < b", "", [("c & d", definitions([("name", "<b>x")]))])
    assert "a &lt; b" in text
    assert "c &amp; d" in text
    assert "&lt;b&gt;x" in text
    assert "<b>x" not in text


def test_a_broken_history_is_named(tmp_path):
    run = make_run(tmp_path, "a")
    path = next(run.rglob("history.jsonl"))
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(ReportError, match="line 1"):
        find_runs([run])
