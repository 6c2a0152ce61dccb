"""``ndem fit`` from a file to a model, and everything that can be wrong with the file."""

from __future__ import annotations

import functools
import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase.build import molecule as ase_molecule
from ase.units import kcal, mol

from fairchem_kit.launch import exit_codes
from fairchem_kit.launch.record import Record
from fairchem_kit.report.page.build import Report
from fairchem_kit.training import Trainer
from fairchem_kit.training.resume import stopping
from fitting import labelled, molecule, rattled, surface, write_frames
from ndem_ocp import calculator, cli
from ndem_ocp.fit import command, dataset, length
from ndem_ocp.fit.folder import Folder
from ndem_ocp.second_views.sidecar import read_meta

SHORT = ("--time", "0.02", "--cpu", "--model", "equiformer_v2")


def fit(*words) -> int:
    return cli.main(["fit", *map(str, words)])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A folder of its own, where the user stands."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    # no processes forked from this one, which has trained before and has threads
    monkeypatch.setattr(command, "_workers", lambda: 1)
    here_only = functools.partial(dataset.check_dataset, isolate=False)
    monkeypatch.setattr(dataset, "check_dataset", here_only)
    return here


@pytest.fixture(scope="session")
def frames(tmp_path_factory) -> Path:
    """Forty frames of one surface."""
    return write_frames(tmp_path_factory.mktemp("frames") / "cu.extxyz", rattled(surface(), 40))


@pytest.fixture
def no_pictures(monkeypatch):
    """The report's page takes longer to draw than all the rest of a fit here."""
    monkeypatch.setattr(Report, "page", lambda self: "page")


def tree(path: Path) -> dict[Path, tuple[int, int]]:
    return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in path.rglob("*") if p.is_file()}


def test_from_a_file_to_a_model(frames, folder, capfd):
    source = Path(shutil.copy(frames, folder))
    before = tree(folder)
    assert fit(source.name, *SHORT) == 0
    out = folder / "cu_fit"
    assert {p: about for p, about in tree(folder).items() if out not in p.parents} == before
    said = capfd.readouterr().out
    for words in (
        "40 frames (32 train, 4 val, 4 test) of O Cu, 3 atoms, periodic TTT",
        "in blocks of 2 consecutive ones (one system)",
        "plain training. ",
        "epoch",
        "On test, its forces are ",
        'ndem_ocp.calculator("cu_fit/model.pt")',
    ):
        assert words in said
    for name in ("config.yml", "model.pt", "report.html", "eval/metrics.json", "data/train"):
        assert (out / name).exists()
    assert "Traceback" not in said
    taken, planned = Folder(out).steps()
    assert 0 < taken <= planned

    # the model gives total energies, and knows its elements
    atoms = surface()
    truth = labelled(atoms).get_potential_energy()
    atoms.calc = calculator(out / "model.pt", device="cpu")
    assert abs(atoms.get_potential_energy() - truth) < 3
    relative = atoms.copy()
    relative.calc = calculator(out / "checkpoints" / "fit" / "best_checkpoint.pt", device="cpu")
    reference = np.load(out / "data" / "linear_reference.npz")["coeff"][atoms.numbers].sum()
    difference = atoms.get_potential_energy() - relative.get_potential_energy()
    assert difference == pytest.approx(reference, abs=1e-6)
    assert np.abs(atoms.get_forces() - relative.get_forces()).max() == 0
    gold = surface(metal="Au")
    gold.calc = atoms.calc
    with pytest.raises(ValueError, match="was not trained on Au"):
        gold.get_potential_energy()

    # the same line again: nothing is made again
    kept = {path: about for path, about in tree(out).items() if path.name != "fit.json"}
    assert fit(source.name, *SHORT) == 0
    assert tree(out).items() >= kept.items()
    again = capfd.readouterr().out
    assert "cu_fit exists: continuing with it" in again
    assert "On test, its forces are " in again

    # and what another line would make of it
    assert fit(source.name, *SHORT, "--seed", "1") == 2
    assert "--seed was 0 and is 1" in capfd.readouterr().err
    source.write_text(source.read_text() + "\n")
    assert fit(source.name, *SHORT) == 2
    assert "cu.extxyz has changed since" in capfd.readouterr().err


def test_the_configuration_trains_again(frames, folder, no_pictures):
    assert fit(frames, *SHORT, "--out", "a") == 0
    path = folder / "a" / "config.yml"
    config = yaml.safe_load(path.read_text())
    assert Path(config["dataset"]["train"]["src"]) == folder / "a" / "data" / "train"
    config["task"]["ndem"]["coefficient"] = 1
    config["optim"].update(max_epochs=1, eval_every=4)
    path.write_text(yaml.safe_dump(config))
    words = ["train", str(path), "--cpu", "--run-dir", str(folder / "a"), "--id", "second"]
    assert cli.main(words) == 0
    assert Record(folder / "a", "second").read()["state"] == "finished"


def test_a_potential_makes_second_views(frames, folder, no_pictures, capfd, monkeypatch):
    """One flag: the views are made in the fit's time, noted with their potential, trained on."""
    # time for the views on a busy machine, and a few steps
    monkeypatch.setattr(length, "measure", lambda *_: length.Speed(5.0, 0.01))
    words = (frames, "--time", "1", *SHORT[2:], "--out", "a", "--second-views")
    assert fit(*words, "ase.calculators.emt:EMT()") == 0
    said = capfd.readouterr()
    assert "change of forces is off by 0.0 %" in said.err
    assert "displaced by 0.002 to 0.01 A: surfaces" in said.out
    views = read_meta(folder / "a" / "views.lmdb")
    assert views["complete"]
    assert 2 <= views["made_of"]["draws"]["count"] <= 32
    config = yaml.safe_load((folder / "a" / "config.yml").read_text())
    assert config["task"]["ndem"]["second_views"] == str(folder / "a" / "views.lmdb")
    record = json.loads(next(folder.glob("a/logs/*/fit/run.json")).read_text())
    assert record["config"]["task"]["ndem"]["second_views_of"]["name"] == "EMT"
    assert fit(*words, "ase.calculators.emt:EMT()") == 0  # complete: says its result again
    assert fit(*words, "ase.calculators.lj:LennardJones()") == 2
    assert "--second-views was ase.calculators.emt:EMT()" in capfd.readouterr().err


def test_a_potential_that_cannot_be_used_is_one_sentence(frames, folder, capfd):
    for given, said in (
        ("no_such_module:EMT()", "no_such_module cannot be imported here"),
        (f"{Path(__file__).parent}/test_second_views.py:Changed(forces=1.5)", "not the gradient"),
    ):
        out = folder / str(len(given))
        assert fit(frames, *SHORT[2:], "--time", "1", "--out", out, "--second-views", given) == 2
        assert said in capfd.readouterr().err
        assert not (out / "views.lmdb").exists()


def test_a_dry_run_writes_nothing(frames, folder, capfd):
    views = folder / "views.npz"
    views.write_text("")
    assert fit(frames, *SHORT, "--dry-run", "--second-views", views) == 0
    assert list(folder.iterdir()) == [views]
    said = capfd.readouterr().out
    assert "split     " in said
    assert "length    " in said
    config = yaml.safe_load(said[said.index("\n# ndem fit") : said.index("\nNothing was written")])
    assert config["dataset"]["train"]["src"] == str(folder / "cu_fit" / "data" / "train")
    assert config["task"]["ndem"]["second_views"] == str(views)
    assert config["task"]["ndem"]["place"] == "instead"
    assert "Nothing was written" in said


def test_a_stopped_fit_continues(frames, folder, capfd, monkeypatch, no_pictures, two_threads):
    words = (frames, *SHORT, "--time", "0.05", "--out", "a")
    backward = Trainer._backward
    threads = []

    def stop_at_two(self, loss):
        backward(self, loss)
        threads.append(torch.get_num_threads())
        if self.in_training and self.step == 2 and len(threads) == 2:
            stopping.request_stop("Ctrl-C")

    monkeypatch.setattr(Trainer, "_backward", stop_at_two)
    # a few steps, however busy the machine is
    monkeypatch.setattr(length, "measure", lambda *_: length.Speed(0.4, 0.01, threads=2))
    assert fit(*words) == exit_codes.STOPPED
    assert "The same command continues:\n  ndem fit" in capfd.readouterr().err
    assert Record(folder / "a", "fit").read()["state"] == "stopped"
    torch.set_num_threads(1)

    def not_again(*args, **kwargs):
        raise AssertionError("converted a second time")

    monkeypatch.setattr(dataset, "convert", not_again)
    before = (folder / "a" / "config.yml").read_text()
    assert fit(*words) == 0
    said = capfd.readouterr().out
    assert "Continuing from step" in said
    assert (folder / "a" / "config.yml").read_text() == before
    assert (folder / "a" / "model.pt").exists()
    assert set(threads) == {2}
    assert len(threads) > 2


def test_a_fit_that_was_stopped_before_it_trained(frames, folder, capfd, monkeypatch):
    """The data are there, and what does not concern them may still change."""

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_plan", interrupted)
    assert fit(frames, *SHORT, "--out", "a") == 130
    assert (folder / "a" / "data").is_dir()
    assert fit(frames, *SHORT, "--out", "a", "--time", "3") == 130
    assert fit(frames, *SHORT, "--out", "a", "--seed", "3") == 2
    assert "--seed was 0 and is 3" in capfd.readouterr().err


def test_files_for_validation_and_test_of_known_systems(frames, folder, capfd):
    valid = write_frames(folder / "v.extxyz", rattled(surface(), 5, seed=1))
    test = write_frames(folder / "t.xyz", rattled(surface(), 6, seed=2))
    with test.open("rb") as plain, gzip.open(folder / "t.xyz.gz", "wb") as packed:
        shutil.copyfileobj(plain, packed)
    words = (frames, *SHORT, "--valid", valid, "--test", folder / "t.xyz.gz", "--dry-run")
    assert fit(*words) == 0
    said = capfd.readouterr().out
    assert "51 frames (40 train, 5 val, 6 test)" in said
    assert "every composition of val and test is also in training" in said


def test_several_systems_are_split_by_system(folder, capfd):
    names = []
    for number in range(6):
        symbols = "OCO" if number % 2 else "OCOC"
        name = write_frames(folder / f"{number}.extxyz", rattled(molecule(symbols), 6, number))
        names.append(name)
    assert fit(*names, *SHORT, "--dry-run") == 0
    said = capfd.readouterr().out
    assert "36 frames (24 train, 6 val, 6 test)" in said
    assert "of the 6 whole systems" in said


@pytest.mark.parametrize("unit", ["kcal/mol", "kJ/mol"])
def test_other_units_and_keys(folder, capfd, unit, no_pictures):
    factor = {"kcal/mol": kcal / mol, "kJ/mol": kcal / mol / 4.184}[unit]
    frames = []
    for frame in rattled(ase_molecule("CH4"), 30, step=0.15):
        energy, forces = frame.get_potential_energy(), frame.get_forces()
        frame.calc = None
        frame.info["E"] = energy / factor
        frame.arrays["F"] = forces / factor
        frames.append(frame)
    source = write_frames(folder / "m.extxyz", frames)
    keys = (source, *SHORT, "--energy-key", "E", "--forces-key", "F")
    assert fit(*keys) == 2
    assert "Are the labels in kcal/mol or kJ/mol? Then give --units" in capfd.readouterr().err
    assert fit(*keys, "--units", unit, "--out", "b") == 0
    atoms = ase_molecule("CH4")
    truth = labelled(atoms).get_potential_energy()
    atoms.calc = calculator(folder / "b" / "model.pt", device="cpu")
    assert abs(atoms.get_potential_energy() - truth) < 5  # eV, whatever came in


def without(frames, what: str):
    for frame in frames:
        frame.calc.results.pop(what)
    return frames


BAD = {
    "no forces": ("f", lambda: without(rattled(surface(), 12), "forces"), (), "no forces"),
    "no energy": ("f", lambda: without(rattled(surface(), 12), "energy"), (), "no energy"),
    "a wrong key": (
        "f", lambda: rattled(surface(), 12), ("--forces-key", "grad"), "no forces under 'grad'",
    ),
    "no labels": (
        "f", lambda: without(without(rattled(surface(), 12), "energy"), "forces"), (),
        "--energy-key; no forces (the frame has: ['numbers', 'positions'",
    ),
    "few frames": ("f", lambda: rattled(surface(), 5), (), "at least 10"),
    "mixed cells": (
        "f", lambda: rattled(surface(), 12) + rattled(molecule("CO"), 12), (), "different period",
    ),
    "no time": ("f", lambda: rattled(surface(), 12), ("--time", "0"), "minutes above 0"),
    "itself": ("f", lambda: rattled(surface(), 12), ("--valid", "f.extxyz"), "Name it once"),
    "no such file": (
        "f", lambda: rattled(surface(), 12), ("--test", "g.extxyz"), "g.extxyz: no such file",
    ),
    "no such views": (
        "f", lambda: rattled(surface(), 12), ("--second-views", "v"), "--second-views v: no such",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(folder, capfd, name):
    stem, make, more, words = BAD[name]
    write_frames(folder / f"{stem}.extxyz", make())
    assert fit(f"{stem}.extxyz", *SHORT, *more) == 2
    said = capfd.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if line.startswith("ndem: ")]) == 1
    assert [path.name for path in folder.iterdir()] == ["f.extxyz"]


def test_a_frame_in_two_files_is_named(frames, folder, capfd):
    valid = write_frames(folder / "v.extxyz", rattled(surface(), 40)[3:5])
    assert fit(frames, *SHORT, "--valid", valid) == 2
    assert "2 frames in both training and evaluation files" in capfd.readouterr().err


def test_a_bad_record_is_named_by_its_frame(folder, capfd):
    many = rattled(surface(), 30)
    many[7].positions[0] = many[7].positions[1] + 0.1
    source = write_frames(folder / "f.extxyz", many)
    assert fit(source, *SHORT) == 2
    said = capfd.readouterr().err
    assert "f.extxyz: frame 7: " in said
    assert fit(source, *SHORT) == 2  # and again, from the data that are there
    assert "f.extxyz: frame 7: " in capfd.readouterr().err


def test_unusable_frames_can_be_skipped(folder, capfd):
    many = rattled(surface(), 30)
    many[3].calc.results["energy"] = float("nan")
    source = write_frames(folder / "f.extxyz", many)
    assert fit(source, *SHORT) == 2
    said = capfd.readouterr().err
    assert "frame 3: " in said
    assert "--skip-bad" in said
    assert fit(source, *SHORT, "--skip-bad", "--dry-run") == 0
    assert "29 frames" in capfd.readouterr().out


def test_structures_that_no_model_can_be_trained_on_are_found_before_training(folder, capfd):
    many = rattled(molecule(), 30)
    many[3].positions[0] += 40.0  # a fragment far away
    many[5] = labelled(many[5][:1])  # a single atom, as in sets with isolated atoms
    many[8].positions[1] = many[8].positions[0] + 0.05
    source = write_frames(folder / "f.extxyz", many)
    assert fit(source, *SHORT) == 2
    said = capfd.readouterr().err
    assert "2 frames, the first is frame 3: atom 0 has no neighbour within 6 A, the model" in said
    assert "frame 8: atoms 0 and 1 are" in said
    assert "--skip-bad" in said
    assert fit(source, *SHORT, "--skip-bad", "--dry-run") == 0
    assert "27 frames" in capfd.readouterr().out


def test_a_folder_of_something_else_is_left_alone(frames, folder, capfd):
    (folder / "cu_fit").mkdir()
    (folder / "cu_fit" / "thesis.tex").write_text("x")
    assert fit(frames, *SHORT) == 2
    assert "was not made by ndem fit" in capfd.readouterr().err
    assert [path.name for path in (folder / "cu_fit").iterdir()] == ["thesis.tex"]


@pytest.mark.filterwarnings("ignore:Skipping gradients for")  # of TorchMD-NET, on straight CO2
def test_molecules_train_a_torchmdnet(folder, capfd, no_pictures):
    pytest.importorskip("torchmdnet")
    source = write_frames(folder / "co2.extxyz", rattled(molecule(), 40))
    assert fit(source, "--time", "0.02", "--cpu") == 0
    said = capfd.readouterr().out
    assert "TorchMD-NET ET, forces as the energy's gradient" in said
    atoms = molecule()
    atoms.calc = calculator(folder / "co2_fit" / "model.pt", device="cpu")
    assert np.isfinite(atoms.get_forces()).all()
