"""`ndem submission`: the leaderboard's file, and a checker that says what is wrong with one."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
from fairchem.core.scripts import make_submission_file

from conftest import short_training, tiny_config, trainer_of
from fairchem_kit.evaluation.submission import Expected, problems_of, problems_of_file
from helpers import in_unit
from ndem_ocp import cli

NAMES = ("id", "ood_ads", "ood_cat", "ood_both")
COUNTS = [5, 0, 3, 4]  # free atoms of the structures 1_10, 1_2, 2_0, 2_1


@pytest.fixture(scope="module")
def checkpoint(demo_data, tmp_path_factory):
    return short_training(demo_data, tmp_path_factory.mktemp("run")) / "best_checkpoint.pt"


def splits_of(data):
    """The four splits, of which two are one here: val_id twice, val_ood twice."""
    folders = dict(zip(NAMES, ("val_id", "val_ood", "val_ood", "val_id")))
    words = [(f"--{name.replace('_', '-')}", str(data / f)) for name, f in folders.items()]
    return folders, [word for pair in words for word in pair]


def test_the_file_holds_what_fairchems_own_tools_write(checkpoint, demo_data, tmp_path, capsys):
    folders, words = splits_of(demo_data)
    out = tmp_path / "new" / "submission.npz"
    assert (
        cli.main(["submission", "write", str(checkpoint), *words, "--out", str(out), "--cpu"]) == 0
    )
    assert (
        "id 10, ood_ads 10, ood_cat 10, ood_both 10 structures; checked" in capsys.readouterr().out
    )
    assert cli.main(["submission", "check", str(out), *words]) == 0
    assert problems_of_file(out) == []

    paths = {}
    for folder in ("val_id", "val_ood"):  # fairchem --mode predict
        config = tiny_config(demo_data)
        config["dataset"]["test"] = {**config["dataset"]["val"], "src": str(demo_data / folder)}
        config["task"]["prediction_dtype"] = "float32"
        trainer = trainer_of(config, tmp_path / folder, run_id="p")
        trainer.load_checkpoint(str(checkpoint))
        trainer.predict(trainer.test_loader, results_file="predictions", disable_tqdm=True)
        paths[folder] = str(tmp_path / folder / "results" / "p" / "ocp_predictions.npz")
    theirs = str(tmp_path / "theirs.npz")
    make_submission_file.main(
        argparse.Namespace(
            dataset="OC20", out_path=theirs, is2re_relaxations=False, hybrid=False,
            **{name: paths[folder] for name, folder in folders.items()},
        )
    )  # fmt: skip
    with np.load(out) as ours, np.load(theirs) as reference:
        assert sorted(ours.files) == sorted(reference.files)
        for name in NAMES:
            for field in ("ids", "chunk_idx"):
                np.testing.assert_array_equal(ours[f"{name}_{field}"], reference[f"{name}_{field}"])
            # fairchem's energies are a column.
            energy = reference[f"{name}_energy"].reshape(-1)
            np.testing.assert_allclose(ours[f"{name}_energy"], energy, atol=1e-5)
            np.testing.assert_allclose(
                ours[f"{name}_forces"], reference[f"{name}_forces"], atol=1e-4
            )


def test_the_other_layout_has_all_atoms_in_the_datas_order(checkpoint, demo_data, tmp_path, capsys):
    _, words = splits_of(demo_data)
    out = tmp_path / "s.npz"
    options = ["--out", str(out), "--cpu", "--layout", "leaderboard", "--float16"]
    assert cli.main(["submission", "write", str(checkpoint), *words, *options]) == 0
    with np.load(out) as stored:
        assert stored["id_forces"].shape == (130, 3)
        assert stored["id_forces"].dtype == np.float16
        assert stored["id_energy"].dtype == np.float32
        assert stored["id_chunk_idx"].tolist() == list(range(13, 130, 13))
        assert stored["id_ids"].tolist() == [f"4_{frame}" for frame in range(10)]
    assert cli.main(["submission", "check", str(out), *words, "--layout", "leaderboard"]) == 0
    capsys.readouterr()
    assert cli.main(["submission", "check", str(out), *words]) == 1
    assert "such as '4_0': 13, not 5" in capsys.readouterr().out


def test_without_labels_a_file_can_be_written_and_an_evaluation_says_what_is_missing(
    checkpoint, demo_data, tmp_path, capsys
):
    from fairchem_kit.data.lmdb_writer import write_records
    from ndem_ocp.testing.runs import frames

    records = frames(demo_data, "val_id")
    for record in records:
        del record["energy"], record["forces"]
    (tmp_path / "test").mkdir()
    write_records(tmp_path / "test" / "data.lmdb", records, 130, 10)
    words = [w for name in NAMES for w in (f"--{name.replace('_', '-')}", str(tmp_path / "test"))]
    out = tmp_path / "s.npz"
    assert (
        cli.main(["submission", "write", str(checkpoint), *words, "--out", str(out), "--cpu"]) == 0
    )
    capsys.readouterr()
    assert cli.main(["eval", str(checkpoint), "--data", str(tmp_path / "test"), "--cpu"]) == 2
    assert "no label 'energy'" in capsys.readouterr().err


def test_a_model_in_another_unit_than_the_leaderboards_is_refused(
    checkpoint, demo_data, tmp_path, capsys
):
    other, out = in_unit(checkpoint, tmp_path / "kcal.pt", "kcal/mol"), tmp_path / "s.npz"
    words = splits_of(demo_data)[1]
    assert cli.main(["submission", "write", str(other), *words, "--out", str(out), "--cpu"]) == 2
    assert "predicts in kcal/mol; the leaderboard takes eV and eV/A" in capsys.readouterr().err
    assert not out.exists()


def good() -> dict[str, np.ndarray]:
    arrays = {}
    for name in NAMES:
        arrays |= {
            f"{name}_ids": np.array(["1_10", "1_2", "2_0", "2_1"]),
            f"{name}_energy": np.arange(4, dtype=np.float32),
            f"{name}_forces": np.ones((12, 3), dtype=np.float16),
            f"{name}_chunk_idx": np.cumsum(COUNTS)[:-1],
        }
    return arrays


EXPECTED = {"id": Expected(dict(zip(["1_10", "1_2", "2_0", "2_1"], COUNTS)))}


def test_a_good_file_has_no_problems(tmp_path):
    assert list(problems_of(good(), EXPECTED, "fairchem")) == []
    np.savez(tmp_path / "s.npz", **good())
    assert problems_of_file(tmp_path / "s.npz", EXPECTED) == []


def swapped(arrays):
    for field in ("ids", "energy"):
        arrays[f"id_{field}"] = arrays[f"id_{field}"][[1, 0, 2, 3]]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda a: a.pop("ood_cat_energy"), "ood_cat: missing: ood_cat_energy"),
        (lambda a: a.update(val_ids=a["id_ids"]), "val_ids: not a key of a submission"),
        (lambda a: a.update(id_ids=np.arange(4)), "id_ids: int64 (4,); it must be"),
        (lambda a: a.update(id_energy=np.ones((4, 1))), "id_energy is a column (4, 1)"),
        (lambda a: a.update(id_energy=np.ones(3)), "id_energy has 3 values for 4 ids"),
        (lambda a: a.update(id_energy=np.ones(4, np.float16)), "id_energy is float16"),
        (lambda a: a.update(id_forces=np.ones(36)), "id_forces: float64 (36,)"),
        (lambda a: a.update(id_forces=np.full((12, 3), np.nan)), "id_forces: 12 not finite"),
        (lambda a: a.update(id_chunk_idx=np.cumsum(COUNTS)), "must be left out"),
        (lambda a: a.update(id_chunk_idx=np.array([5, 8])), "2 entries for 4 structures, not 3"),
        (lambda a: a.update(id_chunk_idx=np.array([5.0, 5, 8])), "id_chunk_idx: float64 (3,)"),
        (lambda a: a.update(id_chunk_idx=np.array(COUNTS[:-1])), "entry 1 is 0, after 5"),
        (lambda a: a.update(id_chunk_idx=np.array([5, 5, 80])), "there are 12 rows of forces"),
        (lambda a: a.update(id_ids=np.array(["1_10", "1_10", "2_0", "2_1"])), "more than once"),
        (swapped, "row 0 is '1_2', it should be '1_10'"),
        (lambda a: a.update(id_ids=np.array(["10", "2", "3", "4"])), "4 are not SID_FID"),
        (lambda a: a.update(id_ids=np.array(["1_10", "1_2", "2_0", "3_1"])), "1 structure of the "),
        (lambda a: a.update(id_chunk_idx=np.array([4, 5, 8])), "'1_10': 4, not 5"),
        (lambda a: a.update(id_ids=None), "id_ids is an array of Python objects"),
    ],
)  # fmt: skip
def test_each_mistake_is_named(change, sentence):
    arrays = good()
    change(arrays)
    problems = list(problems_of(arrays, EXPECTED, "fairchem"))
    assert any(sentence in problem for problem in problems), problems
    assert all(problem.startswith(("id", "ood_cat", "val_ids")) for problem in problems)


def test_files_that_are_not_submissions(tmp_path, capsys):
    (tmp_path / "text.npz").write_text("text")
    assert "cannot be read" in problems_of_file(tmp_path / "text.npz")[0]
    np.save(tmp_path / "one.npy", np.ones(3))
    assert "single array" in problems_of_file(tmp_path / "one.npy")[0]
    np.savez(tmp_path / "objects.npz", **{**good(), "id_ids": np.array(["1", 2], dtype=object)})
    assert "id_ids is an array of Python objects" in problems_of_file(tmp_path / "objects.npz")[0]
    assert cli.main(["submission", "check", str(tmp_path / "nowhere.npz")]) == 2
    assert "no such file" in capsys.readouterr().err
