"""Splits that go together: one energy reference, elements that training has, own numbers."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from ase.io import write

import data_cli as cli
from fairchem_kit.data.check import check_dataset
from fairchem_kit.data.errors import DataError
from fairchem_kit.data.split_record import split_record
from fairchem_kit.data.statistics import dataset_statistics
from fairchem_kit.evaluation.splits import Split, disagreements
from fairchem_kit.training.checks.data import record_problems
from fairchem_kit.training.normalizers import resolve_normalizers
from test_data_support import make_frames, record, run, trajectories, write_split

__all__ = ["trajectories"]  # a fixture


def errors(path: Path, kind: str, severity: str = "error") -> list[str]:
    reports = check_dataset(path, progress=False, isolate=False)
    return [
        f"{Path(f.file).name}: {f.message}"
        for report in reports
        for f in report.findings
        if (f.kind, f.severity) == (kind, severity)
    ]


@pytest.fixture
def copper(tmp_path) -> list[Path]:
    paths = []
    for number in range(4):
        paths.append(tmp_path / f"cu{number}.traj")
        write(paths[-1], make_frames("Cu", seed=20 + number))
    return paths


def configuration(train: Path, val: Path, **task) -> dict:
    """What the check before training reads of one."""
    section = {"format": "ndem_lmdb", "src": str(train)}
    section["key_mapping"] = {"y": "energy", "force": "forces"}
    return {
        "dataset": section,
        "val_dataset": {"src": str(val)},
        "outputs": {"energy": {"level": "system"}, "forces": {"level": "atom"}},
        "optim": {"batch_size": 1, "max_epochs": 1},
        "task": task,
    }


def test_a_split_of_another_reference_is_refused(tmp_path, copper):
    out = tmp_path / "out"
    run(copper[:3], out, split="train", energy_reference="linear")
    own = str(out / "linear_reference.npz")
    for other in ("none", "last-frame"):
        with pytest.raises(DataError, match=rf"train has .* linear.*val would get {other}.*{own}"):
            run(copper[3:], out, split="val", energy_reference=other)
    np.savez(tmp_path / "other.npz", coeff=np.zeros(119))
    with pytest.raises(DataError, match="val would get linear"):
        run(copper[3:], out, split="val", energy_reference=str(tmp_path / "other.npz"))
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["train"]
    run(copper[3:], out, split="val", energy_reference=own)
    assert errors(out, "reference") == []


def test_training_data_that_are_fitted_anew_are_refused_while_others_have_the_old_fit(
    tmp_path, copper
):
    out = tmp_path / "out"
    run(copper[:2], out, split="train", energy_reference="linear")
    own = str(out / "linear_reference.npz")
    before = Path(own).read_bytes()
    run(copper[3:], out, split="val", energy_reference=own)
    with pytest.raises(DataError, match="val has energies with the reference linear"):
        run(copper[:3], out, split="train", energy_reference="linear", overwrite=True)
    assert Path(own).read_bytes() == before
    run(copper[:3], out, split="train", energy_reference=own, overwrite=True)
    run(copper[:2], out, split="train", energy_reference="linear", overwrite=True)  # the same fit


def mixed(tmp_path: Path, copper: list[Path]) -> tuple[Path, Path]:
    """Train and val of two references, in a set as earlier versions made it."""
    run(copper[:3], tmp_path / "a", split="train", energy_reference="linear")
    run(copper[3:], tmp_path / "b", split="val", energy_reference="none")
    for folder in ("a", "b"):
        file = tmp_path / folder / "dataset.json"
        content = json.loads(file.read_text())
        content["conversions"][0]["energy_reference"].pop("sha256", None)
        file.write_text(json.dumps(content))
    return tmp_path / "a" / "train", tmp_path / "b" / "val"


def test_check_names_two_references_in_one_set(tmp_path, copper):
    train, val = mixed(tmp_path, copper)
    assert errors(train.parent, "reference") == []
    joined = json.loads((train.parent / "dataset.json").read_text())
    joined["conversions"] += json.loads((val.parent / "dataset.json").read_text())["conversions"]
    (train.parent / "dataset.json").write_text(json.dumps(joined))
    val.rename(train.parent / "val")
    (message,) = errors(train.parent, "reference")
    assert "have another reference (none) than those of" in message
    assert errors(train.parent / "val", "reference") == [message]  # of one split alone, too


def test_training_is_refused_on_two_references(tmp_path, copper, caplog):
    train, val = mixed(tmp_path, copper)
    (message,) = record_problems(configuration(train, val))
    assert "dataset.val: the energies of" in message
    assert "another reference (none)" in message
    assert "task.normalizer_check: off" in message
    with caplog.at_level(logging.WARNING):
        assert record_problems(configuration(train, val, normalizer_check="off")) == []
    assert "another reference" in caplog.text
    assert record_problems(configuration(train, val), train=False) == []
    assert record_problems(configuration(train, train)) == []


def test_elements_that_only_validation_has_are_named_by_all(tmp_path, trajectories, capsys, caplog):
    out = str(tmp_path / "out")
    sources = list(map(str, trajectories))
    common = ["--no-progress", "--workers", "1"]
    options = ["--val-fraction", "0.3", "--energy-reference", "last-frame"]
    assert cli.main(["ase", *sources, "--out", out, *options, *common]) == 0
    (symbol,) = (set(json.loads((tmp_path / "out/dataset.json").read_text())["conversions"][0]
                     ["splits"]["val"]["elements"]) - {8})  # fmt: skip
    names = {29: "Cu", 47: "Ag", 46: "Pd", 78: "Pt"}
    message = f"has elements that {out}/train does not have: {names[symbol]}."
    assert message in capsys.readouterr().err
    assert any(message in text for text in errors(tmp_path / "out", "elements", "warning"))
    with caplog.at_level(logging.WARNING):
        assert record_problems(configuration(Path(out) / "train", Path(out) / "val")) == []
    assert message in caplog.text


def test_elements_of_sets_that_were_made_before(tmp_path, trajectories):
    run(trajectories[:2], tmp_path / "out")
    file = tmp_path / "out" / "dataset.json"
    content = json.loads(file.read_text())
    del content["conversions"][0]["splits"]["train"]["elements"]
    file.write_text(json.dumps(content))
    assert split_record(tmp_path / "out/train").elements == {8, 29, 47}
    assert split_record(tmp_path / "elsewhere").elements is None


def test_two_systems_with_one_number_are_found(tmp_path, trajectories):
    """What two conversions into one directory at the same time left before there was a lock."""
    run(trajectories[:1], tmp_path / "a", split="train")
    run(trajectories[1:2], tmp_path / "b", split="val")
    (tmp_path / "b/val").rename(tmp_path / "a/val")
    messages = errors(tmp_path / "a", "sid")
    assert any("sid 0 is O1-Ag8 here and O1-Cu8 in" in message for message in messages)
    (warning,) = errors(tmp_path / "a", "sid", "warning")
    assert "systems.json: systems of val are listed for other splits only: 0;" in warning
    run(trajectories[1:3], tmp_path / "c")
    (tmp_path / "c/train").rename(tmp_path / "a/more")
    messages = errors(tmp_path / "a", "sid")
    assert any("systems.json: it lacks systems of more: 1;" in m for m in messages)
    systems = json.loads((tmp_path / "a/systems.json").read_text())
    systems["other"] = systems["system0"]
    (tmp_path / "a/systems.json").write_text(json.dumps(systems))
    assert any("have the same sid, 0" in message for message in errors(tmp_path / "a/train", "sid"))


def test_a_system_in_two_splits_keeps_both(tmp_path, trajectories):
    out = tmp_path / "out"
    run(trajectories[:2], out, split="train")
    run(trajectories[1:3], out, split="val")
    systems = json.loads((out / "systems.json").read_text())
    assert systems["system1"]["split"] == ["train", "val"]
    assert systems["system1"]["frames"] == 10
    run(trajectories[2:3], out, split="val", overwrite=True)
    systems = json.loads((out / "systems.json").read_text())
    assert systems["system1"]["split"] == ["train"]
    assert errors(out, "sid") == []


def test_the_statistics_are_one_number(tmp_path, copper):
    """Of the conversion, of ndem data check, and of the check before training."""
    out = tmp_path / "out"
    frames = [f for path in copper for f in make_frames("Cu", seed=int(path.stem[-1]), count=40)]
    for frame in frames:
        frame.calc.results["forces"][:4] *= 30  # fixed atoms, whose forces no loss sees
    write(copper[0], frames)
    run(copper[:1], out)
    statistics = dataset_statistics(out / "train")
    stored = split_record(out / "train").statistics
    assert stored["force_rms"] == pytest.approx(statistics.force_rms, rel=1e-12)
    assert stored["energy_stdev"] == pytest.approx(statistics.energy_stdev, rel=1e-12)

    def refused(config: dict) -> str:
        wrong = {"mean": 0.0, "stdev": 60 * statistics.force_rms}
        config["dataset"]["transforms"] = {"normalizer": {"forces": wrong}}
        (message,) = [p for p in record_problems(config) if "normalizer.forces" in p]
        return message

    config = configuration(out / "train", out / "train")
    message = refused(config)
    assert f"standard deviation {statistics.force_rms:.4g}" in message
    assert "the 160 labels of the training split" in message
    (out / "dataset.json").unlink()
    assert "its stdev is 6" in refused(config)  # of some records; still of free atoms alone


def test_labels_in_another_unit_than_the_outputs_are_refused(tmp_path, copper):
    run(copper[:2], tmp_path / "out", split="train")
    config = configuration(tmp_path / "out/train", tmp_path / "out/train")
    assert record_problems(config) == []
    config["outputs"]["forces"]["unit"] = "kcal/mol/A"
    messages = record_problems(config, train=False)
    assert [message.split(":")[0] for message in messages] == ["dataset.train", "dataset.val"]
    assert "the labels 'forces'" in messages[0]
    assert (
        "are in eV/A (dataset.json), but outputs.forces.unit is kcal/mol/A: set it to eV/A"
        in (messages[0])
    )
    config["relax_dataset"] = {"src": str(tmp_path / "out/train")}
    (of_relaxations,) = (m for m in record_problems(config) if m.startswith("dataset.relax"))
    assert "relaxations need forces in eV/A" in of_relaxations
    (tmp_path / "out/dataset.json").unlink()  # data from other tools say no unit
    del config["relax_dataset"]
    assert record_problems(config) == []


def test_normalizer_dataset_is_for_sets_of_ase_files_too(tmp_path, copper):
    run(copper[:2], tmp_path / "out", split="train")
    run(copper[2:], tmp_path / "out", split="val")
    config = configuration(tmp_path / "out/train", tmp_path / "out/val")
    config["dataset"]["transforms"] = {"normalizer": "dataset"}
    resolve_normalizers(config)
    found = config["dataset"]["transforms"]["normalizer"]
    statistics = dataset_statistics(tmp_path / "out/train")
    assert found["forces"] == {"mean": 0.0, "rmsd": pytest.approx(statistics.force_rms)}
    assert found["energy"]["rmsd"] == pytest.approx(statistics.energy_stdev)


def test_an_evaluation_names_a_split_that_does_not_go_with_the_training_data(
    tmp_path, copper, trajectories
):
    train, val = mixed(tmp_path, copper)
    config = {"dataset": {"src": str(train)}, "outputs": {"energy": {}, "forces": {}}}
    (message,) = disagreements(config, Split("val", val))
    assert "another reference (none)" in message
    assert disagreements({**config, "outputs": {"forces": {}}}, Split("val", val)) == []
    assert disagreements(config, Split("train", train)) == []
    run(trajectories[1:2], tmp_path / "c", energy_reference="last-frame")
    messages = disagreements(config, Split("silver", tmp_path / "c/train"))
    assert len(messages) == 2
    assert "does not have: Ag" in messages[1]


def test_structures_that_are_in_two_splits_or_twice_in_one_are_named(tmp_path):
    frames = make_frames("Cu", count=6, seed=1)
    again = [*frames[2:4], *make_frames("Cu", count=3, seed=2)]
    again[3].positions[:] = again[2].positions + 1e-8  # the last digit of a text file
    again[3].calc.atoms = again[3].copy()
    for name, members in (("train", frames), ("val", again)):
        write(tmp_path / f"{name}.traj", members)
        run([tmp_path / f"{name}.traj"], tmp_path / "out", split=name)
    assert errors(tmp_path / "out" / "train", "duplicate", "warning") == []
    twice, shared = errors(tmp_path / "out", "duplicate", "warning")
    assert "val: 1 record with the same atoms, positions and cell as another one" in twice
    assert re.search(r"the first is .*: record 3, like .*: record 2$", twice)
    assert "val: 2 records with the same" in shared
    assert "one in " + str(tmp_path / "out" / "train") in shared
    assert re.search(
        r"val/data.0000.lmdb: record 0, like .*train/data.0000.lmdb: record 2$", shared
    )


def test_a_damaged_record_does_not_shift_the_named_duplicates(tmp_path):
    split = write_split(tmp_path / "train", record(y=1.0), record(pos=None), record(y=2.0))
    (message,) = errors(split, "duplicate", "warning")
    assert "record 2, like" in message
    assert message.endswith("record 0")
