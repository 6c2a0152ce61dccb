"""`ndem eval`: the metrics, from one process or several, and the files."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import tiny_config, trainer_of
from fairchem_kit.data.lmdb_writer import write_records
from fairchem_kit.data.reader import LmdbReader
from fairchem_kit.data.units import IN_EV
from fairchem_kit.evaluation import EvaluationError, Samples, evaluation, read_samples, splits_in
from fairchem_kit.evaluation.batches import (
    BatchResult,
    evaluate,
    merge,
    metrics_of,
    numbers_of_batches,
)
from fairchem_kit.evaluation.model import load_model
from fairchem_kit.evaluation.samples import hill
from fairchem_kit.evaluation.splits import Split, dataset_section, open_split, read_splits
from fairchem_kit.evaluation.tables import table_of
from fairchem_kit.units.columns import columns_of
from helpers import in_unit
from ndem_ocp import cli
from ndem_ocp.export import export_checkpoint
from ndem_ocp.testing.runs import PLAIN_TRAINER

BATCH = 3  # of 10 structures: the last batch is ragged


@pytest.fixture(scope="module")
def trained(demo_data, tmp_path_factory):
    """(best checkpoint, last checkpoint, configuration) of a run of a few steps."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(demo_data)
    config["optim"].update(max_epochs=1, eval_every=10, eval_batch_size=BATCH)
    trainer_of(config, folder, run_id="first").train(disable_eval_tqdm=True)
    checkpoints = folder / "checkpoints" / "first"
    return checkpoints / "best_checkpoint.pt", checkpoints / "checkpoint.pt", config


@pytest.fixture(scope="module")
def evaluated(trained, demo_data, tmp_path_factory):
    """The folder of an evaluation of two splits by one process."""
    out = tmp_path_factory.mktemp("evaluation")
    splits = [str(demo_data / name) for name in ("val_id", "val_ood")]
    options = ["--batch-size", str(BATCH), "--out", str(out), "--cpu"]
    assert cli.main(["eval", str(trained[0]), "--data", *splits, *options]) == 0
    return out


def validated(checkpoint, config, split, tmp_path):
    """What fairchem's own validation gives."""
    config["dataset"]["val"]["src"] = str(split)
    trainer = trainer_of(config, tmp_path)
    trainer.load_checkpoint(str(checkpoint))
    return {k: v["metric"] for k, v in trainer.validate(disable_tqdm=True).items()}


@pytest.mark.parametrize("split", ["val_id", "val_ood"])
def test_the_metrics_are_those_of_fairchems_validation(
    trained, evaluated, demo_data, tmp_path, split
):
    theirs = validated(trained[0], trained[2], demo_data / split, tmp_path)
    ours = json.loads((evaluated / "metrics.json").read_text())["splits"][split]["metrics"]
    assert set(theirs) - {"loss"} == set(ours)
    for name, value in ours.items():
        # EquiformerV2 draws its edges' frames at random: the last digits of float32 differ.
        assert value == pytest.approx(theirs[name], rel=1e-4, abs=2e-5), name


def test_the_table_has_the_units_of_table_3_and_the_mean_over_the_splits(evaluated):
    about = json.loads((evaluated / "metrics.json").read_text())
    table = about["table"]
    for split in ("val_id", "val_ood"):
        metrics = about["splits"][split]["metrics"]
        assert table[split]["energy_mae_meV"] == pytest.approx(1000 * metrics["energy_mae"])
        assert table[split]["forces_mae_meV_per_A"] == pytest.approx(1000 * metrics["forces_mae"])
        assert table[split]["forces_cosine"] == metrics["forces_cosine_similarity"]
        within = metrics["energy_forces_within_threshold"]
        assert table[split]["efwt_percent"] == 100 * within
    for key, value in table["mean"].items():
        assert value == pytest.approx((table["val_id"][key] + table["val_ood"][key]) / 2)
    markdown = (evaluated / "table.md").read_text()
    assert "| val_id | 10 |" in markdown
    assert "step 10; weights: moving average (EMA)" in markdown
    with (evaluated / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["val_id", "val_ood", "mean"]
    assert float(rows[0]["energy_mae_meV"]) == table["val_id"]["energy_mae_meV"]
    assert about["checkpoint"]["weights"] == "ema"
    assert about["checkpoint"]["step"] == 10
    assert about["units"] == {"energy": "eV", "forces": "eV/A"}


def test_the_samples_add_up_to_the_metrics(evaluated, demo_data):
    metrics = json.loads((evaluated / "metrics.json").read_text())["splits"]["val_ood"]["metrics"]
    samples = read_samples(evaluated, "val_ood")
    columns, atoms = samples.columns, samples.atoms
    assert columns["index"].tolist() == list(range(10))
    assert set(columns["formula"]) == {"COPt12"}
    assert set(columns["adsorbate"]) == {"CO"}
    assert np.abs(columns["energy_error"]).mean() == pytest.approx(metrics["energy_mae"])
    weights = columns["free_atoms"]
    assert np.average(columns["force_mae"], weights=weights) == pytest.approx(
        metrics["forces_mae"], rel=1e-5
    )
    assert np.average(columns["force_cosine"], weights=weights) == pytest.approx(
        metrics["forces_cosine_similarity"], rel=1e-5
    )
    assert columns["efwt"].mean() == metrics["energy_forces_within_threshold"]
    free = atoms["free"]
    assert free.sum() == weights.sum()
    assert samples.force_error[free].mean() == pytest.approx(metrics["forces_mae"], rel=1e-5)
    of_third = free & (atoms["structure"] == 3)
    assert samples.force_error[of_third].mean() == pytest.approx(columns["force_mae"][3])
    assert set(atoms["atomic_numbers"][atoms["tags"] == 2]) == {6, 8}
    # The rows are the file's, in its order.
    record = LmdbReader({"src": str(demo_data / "val_ood")})[3]
    assert columns["energy_label"][3] == pytest.approx(record.y)
    assert (columns["sid"][3], columns["fid"][3]) == (str(record.sid), str(record.fid))
    np.testing.assert_array_equal(atoms["force_label"][atoms["structure"] == 3], record.force)


@pytest.mark.ddp
@pytest.mark.slow
def test_several_ranks_give_what_one_gives_to_the_bit(trained, evaluated, demo_data, tmp_path):
    splits = [str(demo_data / name) for name in ("val_id", "val_ood")]
    options = ["--batch-size", str(BATCH), "--out", str(tmp_path), "--cpu", "--ranks", "3"]
    assert cli.main(["eval", str(trained[0]), "--data", *splits, *options]) == 0
    one, three = (json.loads((f / "metrics.json").read_text()) for f in (evaluated, tmp_path))
    assert three["ranks"] == 3
    assert three["table"] == one["table"]
    for split in ("val_id", "val_ood"):
        assert three["splits"][split]["metrics"] == one["splits"][split]["metrics"]
        files = [f / f"{split}.samples.csv" for f in (evaluated, tmp_path)]
        assert files[0].read_text() == files[1].read_text()
        a, b = (read_samples(f, split).atoms for f in (evaluated, tmp_path))
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    assert not (tmp_path / ".ranks").exists()


def test_every_record_is_in_one_batch_of_one_rank():
    for records, batch, ranks in ((10, 3, 4), (1, 8, 3), (12, 4, 2), (7, 1, 5)):
        numbers = [list(numbers_of_batches(records, batch, r, ranks)) for r in range(ranks)]
        assert sorted(n for part in numbers for n in part) == list(range(-(-records // batch)))


def test_a_missing_or_doubled_batch_is_an_error():
    def result(number, rows):
        return BatchResult(number, {"energy_mae": (1.0, 2)}, Samples({"index": np.array(rows)}, {}))

    metrics, samples = merge([result(1, [2]), result(0, [0, 1])], 3)
    assert metrics == {"energy_mae": 0.5}
    assert samples.columns["index"].tolist() == [0, 1, 2]
    with pytest.raises(EvaluationError, match="evaluated: 2 structures, but the split has 3"):
        merge([result(0, [0, 1])], 3)
    with pytest.raises(EvaluationError, match="a rank is missing"):
        merge([result(0, [0, 1]), result(0, [0, 1])], 3)


def test_efwt_counts_what_oc20_counts(trained, demo_data):
    """fairchem's function on predictions made by hand: 2 of 4 structures are within both limits."""
    model = load_model(trained[0], cpu=True)
    dataset = open_split(model.config, Split("val", demo_data / "val_id"))

    def by_hand(batch, seed):
        raw = {"energy": batch.energy.view(-1, 1).clone(), "forces": batch.forces.clone()}
        if seed == 0:  # the first batch
            raw["energy"][1] += 0.021  # above 0.02 eV
            atom = int(batch.natoms[:2].sum()) + int(first_free(batch, 2))
            raw["forces"][atom, 1] += 0.031  # above 0.03 eV/A
            raw["energy"][3] += 0.019
            raw["forces"][-1, 2] -= 0.029
            raw["forces"][batch.fixed == 1] += 5.0  # fixed atoms do not count
        norms = model.trainer.normalizers
        return {name: norms[name].norm(value) for name, value in raw.items()}, raw

    def first_free(batch, i):
        return (batch.fixed[batch.batch == i] == 0).nonzero()[0]

    made_up = SimpleNamespace(
        predict=by_hand, trainer=model.trainer, config=model.config, outputs=model.outputs
    )
    first, *rest = evaluate(made_up, dataset, 4)
    assert first.sums["energy_forces_within_threshold"] == (2.0, 4.0)
    assert first.samples.columns["efwt"].tolist() == [1, 0, 0, 1]
    assert [r.sums["energy_forces_within_threshold"] for r in rest] == [(4.0, 4.0), (2.0, 2.0)]


def test_which_weights_are_used_is_chosen_and_stated(trained, tmp_path, capsys, demo_data):
    best, last, _ = trained

    def parameters(model):
        return torch.cat([p.detach().reshape(-1) for p in model.trainer.model.parameters()])

    ema, steps = load_model(last, cpu=True), load_model(last, "last", cpu=True)
    assert (ema.weights, steps.weights) == ("ema", "last")
    assert not torch.equal(parameters(ema), parameters(steps))
    assert torch.equal(parameters(load_model(best, cpu=True)), parameters(ema))
    with pytest.raises(EvaluationError, match=r"only has the moving average \(EMA\)"):
        load_model(best, "last", cpu=True)

    state = torch.load(last, weights_only=True)
    torch.save({**state, "ema": None}, tmp_path / "no_ema.pt")
    assert load_model(tmp_path / "no_ema.pt", cpu=True).weights == "last"
    with pytest.raises(EvaluationError, match="no moving average"):
        load_model(tmp_path / "no_ema.pt", "ema", cpu=True)
    # fairchem's own best checkpoint: the average in place of the weights, and nothing that says so
    best_of_fairchem = {k: state[k] for k in ("state_dict", "normalizers", "elementrefs", "config")}
    torch.save({**best_of_fairchem, "amp": None}, tmp_path / "fairchem.pt")
    assert load_model(tmp_path / "fairchem.pt", cpu=True).weights == "ema"
    # an exported file of the last step's weights says so
    export_checkpoint(last, tmp_path / "raw.pt", weights="last")
    assert load_model(tmp_path / "raw.pt", cpu=True).weights == "last"


@pytest.mark.parametrize(
    ("trainer", "ndem"), [(PLAIN_TRAINER, None), (None, {"objective": "dens"})]
)
def test_other_trainers_checkpoints_give_their_own_validation(
    demo_data, tmp_path, capsys, trainer, ndem
):
    config = tiny_config(demo_data, **(ndem or {}))
    if ndem is None:  # fairchem's own trainer and its own checkpoint files
        del config["task"]["ndem"]
    config["optim"].update(max_epochs=1, eval_every=10, eval_batch_size=BATCH)
    trainer_of(config, tmp_path, trainer, run_id="r").train(disable_eval_tqdm=True)
    theirs = validated_by(tmp_path / "checkpoints" / "r" / "best_checkpoint.pt")
    for name in ("best_checkpoint.pt", "checkpoint.pt"):
        path, out = tmp_path / "checkpoints" / "r" / name, tmp_path / name
        words = ["--data", str(demo_data / "val_id"), "--cpu", "--out", str(out)]
        assert cli.main(["eval", str(path), *words]) == 0
        assert "weights: moving average (EMA)" in capsys.readouterr().out
        ours = json.loads((out / "metrics.json").read_text())["splits"]["val_id"]["metrics"]
        shared = ours.keys() & theirs.keys()  # fairchem's own has no metrics with units
        assert shared >= {"energy_mae", "forces_mae", "forces_cosine_similarity"}
        for key in shared:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=2e-5), key


def validated_by(best):
    """The validation that made a best checkpoint, from the file."""
    found = torch.load(best, weights_only=False)["val_metrics"]  # fairchem's has NumPy numbers
    return {key: value["metric"] for key, value in found.items()}


def test_a_bad_record_is_named_and_nothing_stands_in_for_it(trained, demo_data, tmp_path, capsys):
    records = [LmdbReader({"src": str(demo_data / "val_id")})[i] for i in range(10)]
    records[4].pos[0, 0] = float("nan")
    (tmp_path / "bad").mkdir()
    write_records(tmp_path / "bad" / "data.0000.lmdb", records, 130, 10)
    words = ["--data", str(tmp_path / "bad"), "--cpu", "--out", str(tmp_path / "out")]
    assert cli.main(["eval", str(trained[0]), *words]) == 2
    error = capsys.readouterr().err
    assert "data.0000.lmdb: record 4: " in error
    assert "Every record of a split counts" in error
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_mistakes_are_one_sentence_that_says_what_to_do(
    trained, demo_data, tmp_path, capsys, monkeypatch
):
    def refused(*words):
        assert cli.main(["eval", *map(str, words), "--cpu", "--out", str(tmp_path / "o")]) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1, error
        return error[0]

    val = demo_data / "val_id"
    assert "no such file" in refused(tmp_path / "nowhere.pt", "--data", val)
    assert "nowhere: no such file or directory" in refused(trained[0], "--data", "nowhere")
    (tmp_path / "text.pt").write_text("no checkpoint")
    assert "text.pt is not a checkpoint" in refused(tmp_path / "text.pt", "--data", val)
    torch.save({"state_dict": {}}, tmp_path / "bare.pt")
    assert "contains no configuration" in refused(tmp_path / "bare.pt", "--data", val)
    assert "two splits are called 'a'" in refused(
        trained[0], "--data", f"a={val}", f"a={demo_data / 'val_ood'}"
    )
    assert "--batch-size" in refused(trained[0], "--data", val, "--batch-size", "0")
    assert "--ranks must be at least 1" in refused(trained[0], "--data", val, "--ranks", "0")
    (tmp_path / "empty").mkdir()
    assert "no *.lmdb files" in refused(trained[0], "--data", tmp_path / "empty")


def test_splits_are_named_after_their_directories(tmp_path):
    for name in ("aspirin/test", "ethanol/test", "val id"):
        (tmp_path / name).mkdir(parents=True)
    paths = [str(tmp_path / name) for name in ("aspirin/test", "ethanol/test")]
    assert [s.name for s in read_splits(paths)] == ["aspirin-test", "ethanol-test"]
    assert [s.name for s in read_splits([paths[0], f"id={paths[1]}"])] == ["test", "id"]
    assert read_splits([str(tmp_path / "val id")])[0].name == "val-id"


def test_a_split_is_read_as_the_runs_validation_was():
    config = {
        "dataset": {
            "format": "ndem_lmdb",
            "src": "a",
            "key_mapping": {"y": "energy"},
            "first_n": 3,
        },
        "val_dataset": {"src": "b", "on_bad_record": "skip", "bad_records_log": "x"},
    }
    assert dataset_section(config, "c") == {
        "format": "ndem_lmdb",
        "src": "c",
        "no_shuffle": True,
        "key_mapping": {"y": "energy"},
        "on_bad_record": "raise",
    }
    config["val_dataset"]["use_train_settings"] = False
    assert dataset_section(config, "c") == {
        "src": "c",
        "no_shuffle": True,
        "use_train_settings": False,
        "on_bad_record": "skip",  # a key that only our reader knows
    }


def test_units_follow_the_configuration():
    md17 = {
        "energy": {"level": "system", "unit": "kcal/mol"},
        "forces": {"level": "atom", "unit": "kcal/mol/A", "eval_on_free_atoms": True},
    }
    keys = [c.key for c in columns_of(md17)]
    assert keys == ["energy_mae_kcal_per_mol", "forces_mae_kcal_per_mol_A", "forces_cosine"]
    assert metrics_of({"outputs": md17}).keys() == {"energy", "forces"}  # no EFwT: not in eV
    qm9 = {
        "gap": {"level": "system", "unit": "eV", "report_unit": "meV"},
        "mu": {"level": "system", "unit": "D"},
    }
    columns = columns_of(qm9)
    assert [(c.key, c.factor) for c in columns] == [("gap_mae_meV", 1000.0), ("mu_mae_D", 1.0)]
    assert [c.heading for c in columns] == ["gap MAE (meV)", "mu MAE (D)"]
    rows = table_of(columns, {"test": {"gap_mae": 0.05, "mu_mae": 0.01}})
    assert rows == {"test": {"gap_mae_meV": 50.0, "mu_mae_D": 0.01}}


def test_labels_are_converted_to_the_checkpoints_unit(
    trained, evaluated, demo_data, tmp_path, capsys
):
    best, out = in_unit(trained[0], tmp_path / "kcal.pt", "kcal/mol"), tmp_path / "out"
    words = ["--data", str(demo_data / "val_id"), "--out", str(out), "--cpu"]
    assert cli.main(["eval", str(best), *words]) == 0
    assert "the labels 'energy' of" in (warned := capsys.readouterr().err)
    assert "are in eV; they are converted to kcal/mol, the checkpoint's unit" in warned
    found, expected = (
        json.loads((folder / "metrics.json").read_text())["splits"]["val_id"]["metrics"]
        for folder in (out, evaluated)
    )
    for name in ("energy_mae", "forces_mae"):
        assert found[name] == pytest.approx(expected[name] / IN_EV["kcal/mol"], rel=1e-3)
    assert found["forces_cosine_similarity"] == pytest.approx(
        expected["forces_cosine_similarity"], abs=1e-4
    )


def test_files_that_are_not_there_are_named(evaluated, tmp_path):
    assert splits_in(evaluated) == ["val_id", "val_ood"]
    with pytest.raises(EvaluationError, match=r"val_no.samples.csv.*val_id, val_ood"):
        read_samples(evaluated, "val_no")
    shutil.copy(evaluated / "val_id.samples.csv", tmp_path)
    assert read_samples(tmp_path, "val_id").atoms == {}


@pytest.mark.parametrize(
    ("numbers", "formula"),
    [([6, 1, 1, 1, 8, 1], "CH4O"), ([1, 8], "HO"), ([29] * 12 + [7], "Cu12N"), ([], "")],
)
def test_hill_formulas(numbers, formula):
    assert hill(numbers) == formula


def test_an_interrupted_evaluation_leaves_the_earlier_one_as_it_was(
    trained, evaluated, demo_data, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    shutil.copytree(evaluated, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    write = evaluation.write_samples

    def stopped(folder, split, *rest):
        write(folder, split, *rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "write_samples", stopped)
    words = ["eval", str(trained[0]), "--data", str(demo_data / "val_ood"), "--out", str(out)]
    assert cli.main([*words, "--cpu"]) == 130
    files = filter(Path.is_file, out.iterdir())  # and a folder, see test_finished.py
    assert {path.name: path.read_bytes() for path in files} == before
    monkeypatch.undo()
    assert cli.main([*words, "--cpu"]) == 0
    assert splits_in(out) == ["val_ood"]


def test_a_folder_of_splits_is_refused_with_their_names(trained, demo_data, capsys):
    assert cli.main(["eval", str(trained[0]), "--data", str(demo_data)]) == 2
    error = capsys.readouterr().err
    assert "several splits" in error
    assert str(demo_data / "val_id") in error


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model": {"name": "schnet"}, "optim": {}, "dataset": {}}, "no `loss_functions`"),
        ({"outputs": None}, "`outputs` is missing or empty"),
        ({"optim": None}, "`optim` is missing or empty"),
    ],
)
def test_incomplete_configurations_in_checkpoints_are_named(
    trained, demo_data, tmp_path, capsys, config, words
):
    content = torch.load(trained[0], weights_only=True)
    content["config"] = config if "model" in config else {**content["config"], **config}
    torch.save(content, tmp_path / "odd.pt")
    assert cli.main(["eval", str(tmp_path / "odd.pt"), "--data", str(demo_data / "val_id")]) == 2
    error = capsys.readouterr().err
    assert "odd.pt" in error
    assert words in error


def test_files_of_samples_that_were_cut_off_are_named(evaluated, tmp_path):
    path = tmp_path / "val_id.samples.csv"
    text = (evaluated / path.name).read_text()
    path.write_text(text[: text.rindex(",")])
    with pytest.raises(
        EvaluationError, match=r"val_id.samples.csv: damaged .* run ndem eval again"
    ):
        read_samples(tmp_path, "val_id")
    path.write_text("".join(text.splitlines(keepends=True)[:-2]))
    shutil.copy(evaluated / "val_id.atoms.npz", tmp_path)
    with pytest.raises(EvaluationError, match="different numbers of atoms"):
        read_samples(tmp_path, "val_id")
