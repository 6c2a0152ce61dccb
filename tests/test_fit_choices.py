"""What ``ndem fit`` chooses: split, energy reference, model, length, configuration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from fairchem.core.common.utils import load_config

from conftest import ROOT
from fairchem_kit.commands.options import ENERGY_UNITS
from fairchem_kit.data.frame_files import Source
from fairchem_kit.data.scan import FrameTable
from fairchem_kit.data.sources.ase import AseFiles
from fairchem_kit.data.statistics import Statistics
from fairchem_kit.data.units import IN_EV
from ndem_ocp.fit import length as lengths
from ndem_ocp.fit import plan as plans
from ndem_ocp.fit.config import config_text, parse
from ndem_ocp.fit.errors import FitError
from ndem_ocp.fit.length import Speed, choose_length
from ndem_ocp.fit.plan import EQUIFORMER, ET, make_plan
from ndem_ocp.fit.result import Errors, advice, useful, verdict
from ndem_ocp.fit.splitting import BLOCKS, choose_reference, choose_split


def table(systems: list[tuple[tuple[tuple[int, int], ...], int]], roles=None) -> FrameTable:
    """Frames of ``(composition, how many)``, each system in a file of its own."""
    counts = [count for _, count in systems]
    of = np.repeat(np.arange(len(systems)), counts)
    compositions = list(dict.fromkeys(composition for composition, _ in systems))
    sources = [Source(f"/data/{i}.traj", str(i), AseFiles()) for i in range(len(systems))]
    number = np.array([compositions.index(composition) for composition, _ in systems])
    frames = len(of)
    return FrameTable(
        source=of,
        frame=np.concatenate([np.arange(count) for count in counts]),
        system=of,
        composition=number[of],
        natoms=np.ones(frames, dtype=int),
        energy=np.random.default_rng(1).normal(size=frames),
        max_force=np.ones(frames),
        sources=sources,
        systems=[str(i) for i in range(len(systems))],
        compositions=compositions,
    )


def drawn(frames: FrameTable, seed: int = 0):
    return choose_split(frames, {source.name: "train" for source in frames.sources}, seed)


CO, CO2, CU = ((6, 1), (8, 1)), ((6, 1), (8, 2)), ((29, 4),)


def test_one_system_is_split_in_blocks_of_neighbours():
    split = drawn(table([(CO, 400)]))
    assert not split.by_system
    assert "blocks of 20 consecutive ones (one system)" in split.reason
    counts = {name: int((split.of == name).sum()) for name in ("train", "val", "test")}
    assert counts == {"train": 320, "val": 40, "test": 40}
    changes = int((split.of[1:] != split.of[:-1]).sum())
    assert changes <= 2 * 4  # four blocks, not 80 single frames
    assert BLOCKS * 20 == 400
    assert not np.array_equal(split.of, drawn(table([(CO, 400)]), seed=1).of)
    assert np.array_equal(split.of, drawn(table([(CO, 400)])).of)


def test_many_systems_are_kept_whole():
    frames = table([(CO, 30)] * 20)
    split = drawn(frames)
    assert split.by_system
    assert "20 whole systems" in split.reason
    for name in ("val", "test"):
        systems = np.unique(frames.system[split.of == name])
        assert len(systems) == 2
        assert (split.of[np.isin(frames.system, systems)] == name).all()


def test_a_system_with_the_only_atom_of_its_kind_trains():
    frames = table([(CO, 30)] * 5 + [(CU, 30)])
    for seed in range(20):
        assert (drawn(frames, seed).of[frames.system == 5] == "train").all()


def test_systems_without_common_elements_stay_in_training():
    frames = table([(((z, 1),), 40) for z in range(20, 26)])
    split = drawn(frames)
    assert not split.by_system
    assert "6 systems, too few to leave one out" in split.reason


def test_given_files_are_taken_as_they_are():
    frames = table([(CO, 30), (CO, 5), (CO2, 7)])
    split = choose_split(frames, {"0": "train", "1": "val", "2": "test"}, 0)
    assert [int((split.of == name).sum()) for name in ("train", "val", "test")] == [30, 5, 7]
    assert "every composition of val is also in training" in split.reason
    assert not split.by_system
    only_valid = choose_split(table([(CO, 30), (CO, 5)]), {"0": "train", "1": "val"}, 0)
    assert not (only_valid.of == "test").any()
    only_test = choose_split(table([(CO, 40), (CO, 5)]), {"0": "train", "1": "test"}, 0)
    assert int((only_test.of == "val").sum()) == 4
    assert int((only_test.of == "test").sum()) == 5


def test_a_frame_in_training_and_evaluation_is_refused_in_files_and_moved_in_random_splits():
    frames = table([(CO, 30), (CO, 5)])
    frames.energy[32] = frames.energy[7]
    with pytest.raises(FitError, match=r"frame 2 of /data/1\.traj, which is also frame 7 of"):
        choose_split(frames, {"0": "train", "1": "val"}, 0)
    twice = table([(CO, 100)])
    val = int(np.flatnonzero(drawn(twice).of == "val")[0])
    twice.energy[val] = twice.energy[int(np.flatnonzero(drawn(twice).of == "train")[0])]
    split = drawn(twice)
    assert split.of[val] == "train"
    assert "1 duplicate frame kept in training only" in split.reason


def test_elements_that_do_not_train_are_refused():
    with pytest.raises(FitError, match=r"/data/1\.traj: frame 0 has Cu"):
        choose_split(table([(CO, 30), (CU, 5)]), {"0": "train", "1": "test"}, 0)


def test_few_frames_are_refused():
    with pytest.raises(FitError, match="at least 10"):
        drawn(table([(CO, 9)]))


def test_the_reference_is_linear_if_the_data_determine_it():
    one = table([(CO, 30)])
    assert choose_reference(one, drawn(one).of)[0] == "linear"
    many = table([(CO, 10), (CO2, 10), (((6, 2), (8, 1)), 10), (((6, 3), (8, 1)), 10)])
    of = np.repeat(np.array(["train", "train", "train", "val"], dtype=object), 10)
    assert choose_reference(many, of)[0] == "linear"
    alone = table([(((6, 1), (z, 1)), 10) for z in range(20, 26)])
    of = np.repeat(np.array(["train"] * 5 + ["val"], dtype=object), 10)
    mode, why = choose_reference(alone, of)
    assert mode == "last-frame"
    assert "5 compositions cannot determine the energies of 6 elements" in why


def test_the_length_fills_the_time():
    length = choose_length(Speed(0.05, 0.002), 5, train_frames=400, val_frames=50, batch_size=8)
    assert length.steps == 50 * length.epochs
    assert 250 < length.steps * 0.05 < 300
    assert 20 <= length.steps // length.eval_every <= 30
    assert (length.train_frames, length.val_frames) == (None, None)
    assert length.patience == 8
    assert f"{length.epochs} epochs" in length.reason
    longer = choose_length(Speed(0.05, 0.002), 50, 400, 50, 8)
    assert longer.epochs > 9 * length.epochs
    assert (length.ema_decay, longer.ema_decay) == (pytest.approx(0.996, abs=1e-3), 0.999)


def test_data_that_are_too_many_for_the_time_are_drawn_from():
    length = choose_length(
        Speed(1.0, 0.5), 5, train_frames=100_000, val_frames=10_000, batch_size=8
    )
    assert length.epochs == 1
    assert 200 * 8 < length.train_frames < 300 * 8
    assert 0 < length.val_frames * 0.5 * 4 <= 0.2 * 300
    assert "does not fit" in length.reason


def test_at_least_one_step_is_taken_if_it_is_longer_than_the_time():
    length = choose_length(Speed(1000.0, 50.0), 1, 400, 50, 8)
    assert (length.epochs, length.steps, length.eval_every) == (1, 1, 1)


def statistics(atoms: int = 9, frames: int = 400, elements=(1, 6, 8)) -> Statistics:
    return Statistics(
        frames=frames, systems=1, atoms=atoms * frames, atoms_min=atoms, atoms_max=atoms,
        free_atoms=atoms * frames, elements=list(elements), energy_mean=0.25, energy_stdev=0.5,
        force_rms=1.5, zero_force_mae=1.0, curvature=None, curvature_pairs=0,
    )  # fmt: skip


def data(periodic: bool, **of_train):
    entry = {"fit": {"split": "s", "reference": "r", "by_system": True}}
    train = statistics(**of_train)
    return SimpleNamespace(
        path=Path("/d"), train=train, splits={"train": train, "val": train}, entry=entry,
        pbc="TTT" if periodic else "FFF", periodic=periodic,
    )  # fmt: skip


@pytest.fixture
def with_torchmdnet(monkeypatch):
    monkeypatch.setattr(plans.importlib.util, "find_spec", lambda name: object())


@pytest.fixture
def without_torchmdnet(monkeypatch):
    monkeypatch.setattr(plans.importlib.util, "find_spec", lambda name: None)


def test_the_model_follows_the_data(with_torchmdnet):
    assert make_plan(data(False), None, True, None).model == ET
    assert make_plan(data(True), None, True, None).model == EQUIFORMER
    assert make_plan(data(True), ET, True, None).model == ET


def test_molecules_without_torchmdnet(without_torchmdnet):
    plan = make_plan(data(False), None, True, None)
    assert plan.model == EQUIFORMER
    assert "not installed" in plan.reasons["model"]
    with pytest.raises(FitError, match="pip install"):
        make_plan(data(False), ET, True, None)


def test_batches_follow_frames_and_atoms(with_torchmdnet):
    assert make_plan(data(False), None, True, None).batch_size == 8
    assert make_plan(data(False, frames=40), None, True, None).batch_size == 4
    assert make_plan(data(True, atoms=80), None, True, None).batch_size == 3
    assert make_plan(data(True, atoms=80), None, False, None).batch_size == 8
    assert make_plan(data(True, atoms=900), None, True, None).batch_size == 1


@pytest.mark.parametrize(
    ("seconds", "environment", "expected"),
    [
        ({2: 0.4, 1: 0.1}, {}, Speed(0.1, 0.01, threads=1, slower=0.4)),
        ({2: 0.1, 1: 0.4}, {}, Speed(0.1, 0.01, threads=2)),
        ({2: 0.4, 1: 0.1}, {"OMP_NUM_THREADS": "2"}, Speed(0.4, 0.01)),
    ],
)
def test_one_thread_where_it_is_faster(
    seconds, environment, expected, two_threads, monkeypatch, tmp_path
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(lengths, "_speed", lambda *_: Speed(seconds[torch.get_num_threads()], 0.01))
    trainer = SimpleNamespace(device=torch.device("cpu"))
    assert lengths._fastest(trainer, 1.0) == expected
    assert torch.get_num_threads() == 2  # as before: only the training may take one


LENGTH = choose_length(Speed(0.05, 0.002), 5, 400, 50, 8)


@pytest.mark.parametrize(
    ("periodic", "base", "theirs"),
    [
        (True, "configs/oc20/small.yml", {"avg_degree", "avg_num_nodes", "sample_n"}),
        (False, "configs/md17/small.yml", set()),
    ],
)
def test_the_small_models_are_those_of_configs(with_torchmdnet, periodic, base, theirs):
    """The templates and the configurations of a checkout must not drift apart."""
    plan = make_plan(data(periodic), None, True, None)
    config = parse(config_text(plan, LENGTH, Path("/o"), Path("/o/data"), "t"))
    published = load_config(str(ROOT / base))[0]
    ours, other = config["model"], published["model"]
    assert ours["heads"] == other["heads"]
    keys = (ours["backbone"].keys() | other["backbone"].keys()) - theirs
    differ = {k for k in keys if ours["backbone"].get(k) != other["backbone"].get(k)}
    assert differ == set()
    assert config["loss_functions"] == published["loss_functions"]
    assert config["optim"]["optimizer_params"].pop("fused")  # on a GPU the trainer's default
    for key in ("optimizer", "optimizer_params", "lr_initial", "clip_grad_norm"):
        assert config["optim"][key] == published["optim"][key]


def test_plain_training_with_ndem_one_number_away(with_torchmdnet):
    plan = make_plan(data(True), None, True, None)
    text = config_text(plan, LENGTH, Path("/o"), Path("/o/data"), "t")
    ndem = load_config(str(ROOT / "configs/oc20/ndem.yml"))[0]["task"]["ndem"]
    ours = parse(text)["task"]["ndem"]
    assert ours == {**{key: ndem[key] for key in ("sigma_max", "sigma_min", "norm")},
                    "coefficient": 0}  # fmt: skip
    assert "in runs of minutes" in plan.reasons["objective"]
    assert "--second-views data, or MODULE:CALL" in plan.reasons["objective"]


@pytest.mark.parametrize("periodic", [False, True])
def test_second_views_go_into_the_configuration(with_torchmdnet, tmp_path, periodic):
    plan = make_plan(data(periodic), None, True, str(tmp_path / "views.lmdb"))
    text = config_text(plan, LENGTH, Path("/o"), Path("/o/data"), "t")
    assert parse(text)["task"]["ndem"] == {
        "second_views": str(tmp_path / "views.lmdb"),
        "target": "second_views",
        "coefficient": 1,
        "place": "instead",
        **second_views_of("oc20" if periodic else "md17"),
    }


def second_views_of(folder):
    """The recipe in configs, without what belongs to its data."""
    ndem = load_config(str(ROOT / f"configs/{folder}/second_views.yml"))[0]["task"]["ndem"]
    return {key: ndem[key] for key in ("share", "energies") if key in ndem}


def test_what_to_try_next_follows_from_the_run():
    whole, early = advice(600, 600, False), advice(240, 600, True)
    assert "its full length, 600 steps" in whole
    assert "a longer --time, more frames or where frames are few, second views" in whole
    assert "compare with a fit" not in whole
    assert "after 240 of 600 steps" in early
    assert "try more frames, with" in early
    assert "compare with a fit without them, at the same --time" in early
    errors = Errors("test", 10, energy=5, energy_guess=50, force=20, force_guess=100)
    assert useful(errors)
    assert not useful(replace(errors, force=95))
    assert "a longer --time" in verdict(replace(errors, force=95))


def test_any_path_and_number_is_read_back(with_torchmdnet):
    plan = make_plan(data(False), None, True, None)
    plan = plan.__class__(**{**vars(plan), "normalizer": {"energy": (1e-13, 1e-5),
                                                          "forces": (0.0, 1.5e-7)}})  # fmt: skip
    folder = Path('/a b/it\'s: "x" #1')
    config = yaml.safe_load(config_text(plan, LENGTH, folder, folder / "data", "two\nlines"))
    assert config["dataset"]["train"]["src"] == str(folder / "data" / "train")
    assert config["dataset"]["train"]["transforms"]["normalizer"]["energy"] == {
        "mean": 0.0,
        "stdev": 1e-5,
    }
    assert config["dataset"]["train"]["transforms"]["normalizer"]["forces"]["stdev"] == 1.5e-7


def test_units_of_labels_are_those_that_convert():
    assert set(ENERGY_UNITS) == set(IN_EV)
