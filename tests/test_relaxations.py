"""Relaxations with a model: IS2RE data, fairchem's run-relaxations, `ndem relax`."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from fairchem.core.common.relaxation.ase_utils import batch_to_atoms
from fairchem.core.common.relaxation.optimizers.lbfgs_torch import LBFGS

from conftest import short_training, tiny_config, trainer_of
from fairchem_kit.data.demo_relaxations import make_relaxations
from fairchem_kit.data.errors import DataError
from fairchem_kit.data.reader import LmdbReader
from fairchem_kit.data.reference import load_linear
from fairchem_kit.data.sources.ase import expand_sources
from fairchem_kit.data.sources.is2re import convert_relaxations
from fairchem_kit.data.units import IN_EV
from fairchem_kit.evaluation import model, relaxation
from fairchem_kit.evaluation.model import load_model
from fairchem_kit.evaluation.splits import Split, open_relaxations
from ndem_ocp import cli

SYSTEMS = 5


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory):
    out = tmp_path_factory.mktemp("trajectories")
    make_relaxations(out, SYSTEMS, "small")
    return out


@pytest.fixture(scope="module")
def is2re(trajectories, demo_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("is2re") / "data"
    reference = str(demo_data / "linear_reference.npz")
    words = ["data", "is2re", str(trajectories), "--out", str(out), "--energy-reference", reference]
    assert cli.main(words) == 0
    return out


@pytest.fixture(scope="module")
def checkpoint(demo_data, tmp_path_factory):
    """The last checkpoint of a run of a few steps: weights and their moving average."""
    return short_training(demo_data, tmp_path_factory.mktemp("run")) / "checkpoint.pt"


# ---------------------------------------------------------------------------------------- the data


def test_a_record_holds_both_ends_of_its_trajectory(trajectories, is2re, demo_data):
    dataset = LmdbReader({"src": str(is2re)})
    assert len(dataset) == SYSTEMS
    systems = json.loads((is2re / "systems.json").read_text())
    path = next(trajectories.glob("relaxation_0002_*.traj"))
    assert systems["2"]["source"] == str(path)
    frames, record = read(path, ":"), dataset[2]
    np.testing.assert_allclose(record.pos, frames[0].positions, atol=1e-5)
    np.testing.assert_allclose(record.pos_relaxed, frames[-1].positions, atol=1e-5)
    coefficients, _ = load_linear(demo_data / "linear_reference.npz")
    reference = coefficients[frames[0].numbers].sum()
    assert record.y_relaxed == pytest.approx(frames[-1].get_potential_energy() - reference)
    assert record.y_init == pytest.approx(frames[0].get_potential_energy() - reference)
    assert record.y_relaxed < record.y_init
    assert record.fixed.tolist() == (frames[0].get_tags() == 0).astype(int).tolist()
    assert systems["2"]["max_free_force_of_last"] < 0.02


def labelled(symbols, energy=1.0):
    atoms = Atoms(symbols, positions=[[3.0 * i, 0, 0] for i in range(len(Atoms(symbols)))])
    forces = np.zeros((len(atoms), 3))
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


def test_a_trajectory_that_is_not_a_relaxation_is_refused(tmp_path, demo_data):
    def refused(frames, **options):
        write(tmp_path / "x.traj", frames)
        with pytest.raises(DataError) as error:
            convert_relaxations(
                expand_sources([str(tmp_path / "x.traj")]), tmp_path / "o", **options
            )
        assert not (tmp_path / "o").exists()
        return str(error.value)

    assert "1 frame;" in refused([labelled("Cu2")])
    assert "different atoms" in refused([labelled("Cu2"), labelled("CuPt")])
    assert "no energy" in refused([labelled("Cu2"), Atoms("Cu2", positions=np.eye(3)[:2] * 3)])
    reference = str(demo_data / "linear_reference.npz")
    assert "no coefficient for Au" in refused([labelled("Au2")] * 2, energy_reference=reference)
    write(tmp_path / "y.traj", [labelled("Cu2", 3.0), labelled("Cu2", 1.0)])
    source = expand_sources([str(tmp_path / "y.traj")])
    convert_relaxations(source, tmp_path / "last", energy_reference="last-frame")
    record = LmdbReader({"src": str(tmp_path / "last"), "checks": "none"})[0]
    assert (record.y_init, record.y_relaxed) == (2.0, 0.0)


# ------------------------------------------------------------------ fairchem --mode run-relaxations


def relaxing(demo_data, is2re, folder, checkpoint, **task):
    config = tiny_config(demo_data)
    config["dataset"]["relax"] = {"src": str(is2re)}
    # Nothing converges: fairchem writes no frame of a structure that has.
    config["task"].update(relaxation_steps=3, relaxation_fmax=1e-9, **task)
    trainer = trainer_of(config, folder, run_id="relax")
    trainer.load_checkpoint(str(checkpoint))
    return trainer


def logged(folder):
    """What a run logged of its relaxations."""
    path = folder / "logs" / "ndem_ocp.HistoryLogger" / "relax" / "history.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {key: value for line in lines for key, value in line.items() if "is2r" in key}


def test_fairchems_relaxations_start_and_compare_each_energy_with_its_own_label(
    demo_data, is2re, checkpoint, tmp_path
):
    trainer = relaxing(
        demo_data, is2re, tmp_path, checkpoint, write_pos=True,
        relax_opt={"traj_dir": str(tmp_path / "traj")},
    )  # fmt: skip
    trainer.run_relaxations()
    with np.load(tmp_path / "results" / "relax" / "relaxed_positions.npz") as stored:
        assert stored["ids"].tolist() == [str(sid) for sid in range(SYSTEMS)]
    dataset = LmdbReader({"src": str(is2re)})
    errors = [
        abs(read(tmp_path / "traj" / f"{sid}.traj").get_potential_energy() - dataset[sid].y_relaxed)
        for sid in range(SYSTEMS)
    ]
    assert logged(tmp_path)["is2re_energy_mae"] == pytest.approx(np.mean(errors), abs=1e-4)
    assert 0 < logged(tmp_path)["is2rs_positions_average_distance_within_threshold"] < 1


def test_a_relaxation_leaves_the_weights_and_their_average_as_they_were(
    demo_data, is2re, checkpoint, tmp_path
):
    trainer = relaxing(demo_data, is2re, tmp_path, checkpoint)  # and without task.relax_opt
    weights = [p.detach().clone() for p in trainer.model.parameters()]
    shadows = [p.clone() for p in trainer.ema.shadow_params]
    assert any(not torch.equal(a, b) for a, b in zip(weights, shadows))
    task = dict(trainer.config["task"])
    trainer.run_relaxations()
    assert all(torch.equal(a, b) for a, b in zip(weights, trainer.model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(shadows, trainer.ema.shadow_params))
    assert trainer.config["task"] == task
    # The average was used: a trainer whose weights are the average relaxes to the same energies.
    averaged = relaxing(demo_data, is2re, tmp_path / "b", checkpoint)
    averaged.ema.copy_to()
    averaged.ema = None
    averaged.run_relaxations()
    assert logged(tmp_path)["is2re_energy_mae"] == pytest.approx(
        logged(tmp_path / "b")["is2re_energy_mae"], abs=1e-4
    )


# --------------------------------------------------------------------------------------- ndem relax


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_ndem_relax_writes_what_it_measured(checkpoint, is2re, tmp_path, capsys):
    words = ["--data", f"val_id={is2re}", "--cpu", "--steps", "3", "--fmax", "1e-9"]
    words += ["--batch-size", "2"]
    out = tmp_path / "out"
    options = ["--out", str(out), "--trajectories"]
    assert cli.main(["relax", str(checkpoint), *words, *options]) == 0
    printed = capsys.readouterr().out
    assert "| val_id | 5 |" in printed
    assert "step 10; weights: moving average (EMA)" in printed
    about = json.loads((out / "metrics.json").read_text())
    metrics = about["splits"]["val_id"]["metrics"]
    assert about["relaxation"]["steps"] == 3
    rows = rows_of(out / "val_id.relaxations.csv")
    assert [int(row["sid"]) for row in rows] == list(range(SYSTEMS))
    errors = np.array([float(row["energy_error"]) for row in rows])
    assert metrics["energy_mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-5)
    thresholds = np.arange(0.01, 0.5, 0.001)
    for kind, name in (("end", relaxation.ADWT), ("start", "start_adwt")):
        apart = np.array([float(row[f"{kind}_distance"]) for row in rows])
        assert metrics[name] == pytest.approx(np.mean(apart[:, None] < thresholds), abs=1e-3)
        assert metrics[f"{kind}_distance"] == pytest.approx(apart.mean(), rel=1e-5)
    with np.load(out / "val_id.relaxed_positions.npz") as stored:
        parts = np.split(stored["pos"], stored["chunk_idx"])
    last = read(out / "val_id.trajectories" / "3.traj")
    apart = (parts[3] - last.positions) @ np.linalg.inv(last.cell)  # that one is wrapped
    np.testing.assert_allclose(apart, np.round(apart), atol=1e-4)
    assert float(rows[3]["energy_prediction"]) == pytest.approx(
        last.get_potential_energy(), abs=1e-4
    )


def emt(reference, unit=1.0):
    """A trainer's ``predict`` that is the potential that the data were relaxed with.

    ``unit``: of the predictions, in eV.
    """

    def predict(batch, per_image, disable_tqdm):
        energies, forces = [], []
        for atoms in batch_to_atoms(batch):
            atoms.set_constraint()
            atoms.calc = EMT()
            energies.append(atoms.get_potential_energy() - reference[atoms.numbers].sum())
            forces.append(torch.tensor(atoms.get_forces(), dtype=torch.float32))
        return {
            "energy": torch.tensor(energies).float().view(-1, 1) / unit,
            "forces": torch.cat(forces) / unit,
        }

    return predict


@pytest.mark.parametrize("unit", ["eV", "kcal/mol"])
def test_the_true_potential_ends_at_the_true_structures(
    checkpoint, is2re, demo_data, monkeypatch, unit
):
    model = load_model(checkpoint, cpu=True)
    reference, _ = load_linear(demo_data / "linear_reference.npz")
    for name, of_output in (("energy", unit), ("forces", f"{unit}/A")):
        model.outputs[name]["unit"] = of_output
    monkeypatch.setattr(model.trainer, "predict", emt(reference, IN_EV[unit]))
    dataset = open_relaxations(model.config, Split("x", is2re))
    settings = relaxation.Settings(300, 0.02, relaxation.LBFGS)
    metrics, columns, _ = relaxation.merge(relaxation.relax(model, dataset, 3, settings), SYSTEMS)
    assert metrics["converged"] == 1
    assert metrics["energy_mae"] < 0.01
    assert metrics["energy_within_threshold"] == 1
    assert metrics[relaxation.ADWT] > 0.9 > metrics["start_adwt"]
    assert (columns["fmax"] < 0.02).all()


def test_energies_of_another_reference_are_named(checkpoint, trajectories, is2re, tmp_path, capsys):
    words = ["--cpu", "--steps", "1", "--out", str(tmp_path / "out")]
    assert cli.main(["relax", str(checkpoint), "--data", str(is2re), *words]) == 0
    assert "another reference" not in capsys.readouterr().err
    other = tmp_path / "other"
    assert cli.main(["data", "is2re", str(trajectories), "--out", str(other)]) == 0
    assert cli.main(["relax", str(checkpoint), "--data", str(other), *words]) == 0
    assert f"the energies of {other} have another reference (none)" in capsys.readouterr().err


def test_a_batch_that_is_halved_keeps_its_order(checkpoint, is2re, monkeypatch):
    """fairchem halves a batch that does not fit the GPU, and goes on with the second half first."""
    model = load_model(checkpoint, cpu=True)
    dataset = open_relaxations(model.config, Split("x", is2re))
    settings = relaxation.Settings(2, 0.02, relaxation.LBFGS)
    whole = relaxation.merge(relaxation.relax(model, dataset, 4, settings), SYSTEMS)
    run = LBFGS.run

    def too_large(self, *args, **kwargs):
        if len(self.optimizable.batch.natoms) > 2:
            raise RuntimeError("CUDA out of memory")
        return run(self, *args, **kwargs)

    monkeypatch.setattr(LBFGS, "run", too_large)
    halved = relaxation.merge(relaxation.relax(model, dataset, 4, settings), SYSTEMS)
    assert halved[1]["sid"].tolist() == whole[1]["sid"].tolist() == [str(i) for i in range(SYSTEMS)]
    for name in ("start_distance", "end_distance", "energy_prediction"):
        np.testing.assert_allclose(halved[1][name], whole[1][name], atol=2e-3)
    for a, b in zip(halved[2], whole[2]):
        np.testing.assert_allclose(a, b, atol=2e-2)


def test_single_points_and_other_mistakes_are_refused(checkpoint, demo_data, is2re, capsys):
    def refused(*words):
        assert cli.main(["relax", str(checkpoint), *map(str, words), "--cpu"]) == 2
        return capsys.readouterr().err

    assert "single points with forces (S2EF)" in refused("--data", demo_data / "val_id")
    assert "--steps" in refused("--data", is2re, "--steps", "0")
    assert "--fmax" in refused("--data", is2re, "--fmax", "-1")


def test_wrong_data_are_refused_before_the_model_is_loaded(
    checkpoint, demo_data, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(model, "load_model", None)
    (tmp_path / "empty").mkdir()
    cut_off = tmp_path / "cut.lmdb"
    cut_off.write_bytes(next((demo_data / "val_id").glob("*.lmdb")).read_bytes()[:20_000])
    for data, words in (
        (demo_data / "val_id", "single points with forces (S2EF)"),
        (tmp_path / "empty", "this directory is empty"),
        (cut_off, "cut.lmdb: "),
    ):
        assert cli.main(["relax", str(checkpoint), "--data", str(data)]) == 2
        assert words in capsys.readouterr().err
