"""Second views: potentials are tested, displaced structures labelled, and trained on."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT

from conftest import tiny_config, trainer_of
from fairchem_kit.calculators.potential import Potential
from fairchem_kit.calculators.spec import calculator_of, provenance_of
from fairchem_kit.data.errors import DataError
from fairchem_kit.data.records import Structure, iter_structures
from helpers import state_of
from ndem_ocp.cli import main
from ndem_ocp.fit import views as fit_views
from ndem_ocp.fit.errors import FitError
from ndem_ocp.method import (
    NDeMSettings,
    SettingsError,
    step_generator,
    view_energy,
    view_forces,
)
from ndem_ocp.second_views import fitting, make
from ndem_ocp.second_views.draws import Draws, digest_of, views_of
from ndem_ocp.second_views.make import MakeOptions, make_second_views
from ndem_ocp.second_views.sidecar import Sidecar, SidecarWriter, read_meta
from ndem_ocp.second_views.source import ViewSource
from ndem_ocp.testing import steps
from resuming import finish, launch, run_to_end, same_run, short_run

EXACT = "ase.calculators.emt:EMT()"  # what the demo's data is made with


class Changed(Calculator):
    """EMT with its energy and forces changed."""

    implemented_properties = ("energy", "forces")

    def __init__(self, energy=1.0, forces=1.0, fails_on=None, takes_s=0.0) -> None:
        super().__init__()
        self.parameters.update(energy=energy, forces=forces)
        self.fails_on = fails_on
        self.takes_s = takes_s

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        time.sleep(self.takes_s)
        if self.fails_on in atoms.symbols:
            raise NotImplementedError(f"no parameters for {self.fails_on}")
        copy = atoms.copy()
        copy.calc = EMT()
        self.results = {
            "energy": self.parameters["energy"] * copy.get_potential_energy(),
            "forces": self.parameters["forces"] * copy.get_forces(),
        }


def changed(**options) -> str:
    """The text that makes the calculator above."""
    inside = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return f"{__file__}:Changed({inside})"


FEW = MakeOptions(draws=Draws(3, 0.02, 0.05), pairs=10, progress=False)


@pytest.fixture(scope="module")
def train_split(demo_data):
    return demo_data / "train"


@pytest.fixture(scope="module")
def sidecar(train_split, tmp_path_factory):
    """Views of the demo's training split by the potential that labelled it."""
    out = tmp_path_factory.mktemp("views") / "views.lmdb"
    make_second_views(train_split, EXACT, out, FEW)
    return out


# --- potentials --------------------------------------------------------------------------------


def test_a_calculator_is_made_from_a_line_of_text():
    assert isinstance(calculator_of(EXACT), EMT)
    made = calculator_of(changed(energy=2, forces=2.0))
    assert made.parameters == {"energy": 2, "forces": 2.0}
    found = provenance_of(made, changed(energy=2))
    assert found.name == "Changed"
    assert found.weights != provenance_of(calculator_of(changed(energy=3)), "x:y").weights


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("EMT()", "write MODULE:CALCULATOR"),
        ("no_such_module:EMT()", "no_such_module cannot be imported here"),
        ("./no_such_file.py:make()", "no such file: no_such_file.py"),
        ("ase.calculators.emt:EMT", "not an ASE calculator; call it by adding ()"),
        ("ase.calculators.emt:EMT(nonsense", "is not a Python call"),
        ("ase.calculators.emt:Nonsense()", "Nonsense failed"),
        ("ase.calculators.emt:EMT(asap_cutoff=open('x'))", "EMT(asap_cutoff=open('x')) failed"),
        ("ase.calculators.emt:EMT() + 1", "neither a name nor a call"),
        ("math:pi", "not an ASE calculator"),
    ],
)
def test_a_wrong_line_of_text_is_one_sentence(spec, said):
    with pytest.raises(DataError) as error:
        calculator_of(spec)
    assert said in str(error.value)


def test_weights_of_a_network_are_found_and_distinguished():
    class Holder:
        def __init__(self, seed):
            torch.manual_seed(seed)
            self.inner = {"model": torch.nn.Linear(3, 2)}

    hashes = [provenance_of(Holder(seed), "x:y").weights for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


# --- making them -------------------------------------------------------------------------------


def test_an_exact_potential_gives_exact_labels(train_split, sidecar):
    """F(X) + s dT is the force at X + eps, and E(X) - F . eps + the remainder its energy."""
    views, potential = Sidecar(sidecar), Potential(EMT())
    assert views.scale == pytest.approx(1.0, abs=1e-3)
    assert views.relative_error < 1e-2  # float32 labels
    for structure in list(iter_structures(train_split))[:3]:
        found = views.get(digest_of(structure))
        at_rest, _ = potential(structure)
        for k in range(3):
            energy, forces = potential(structure, found.eps[k])
            got = structure.forces + found.force_change[k]
            assert np.abs(got - forces).max() < 2e-4
            work = (structure.forces * found.eps[k]).sum()
            assert found.energy_remainder[k] - work == pytest.approx(energy - at_rest, abs=1e-4)
        assert not found.eps[:, ~structure.free].any()
        assert found.eps[:, structure.free].all()
        assert 0.02 <= found.sigma.min() < 0.03 < found.sigma.max() <= 0.05


def test_a_potential_of_twice_the_size_is_scaled_or_refused(train_split, tmp_path):
    spec = changed(energy=2.0, forces=2.0)
    make_second_views(train_split, spec, tmp_path / "half.lmdb", FEW)
    assert Sidecar(tmp_path / "half.lmdb").scale == pytest.approx(0.5, abs=1e-3)
    one = MakeOptions(draws=FEW.draws, pairs=10, scale=1.0, correct=False, progress=False)
    with pytest.raises(DataError, match=r"off by 100 % with s = 1 .*--max-error 0.5"):
        make_second_views(train_split, spec, tmp_path / "one.lmdb", one)
    assert not (tmp_path / "one.lmdb").exists()


def test_without_pairs_of_near_frames_the_given_scale_counts(
    train_split, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(fitting, "near_pairs", lambda *_: [])
    options = MakeOptions(draws=Draws(1), scale=0.8, progress=False)
    make_second_views(train_split, EXACT, tmp_path / "views.lmdb", options)
    assert "cannot be tested on them; s = 0.8" in capsys.readouterr().err
    assert Sidecar(tmp_path / "views.lmdb").scale == 0.8


def test_forces_that_are_not_the_gradient_are_refused(train_split, tmp_path):
    with pytest.raises(DataError, match="not the gradient of its energy"):
        make_second_views(train_split, changed(forces=1.5), tmp_path / "views.lmdb", FEW)


def test_an_element_that_the_potential_lacks_is_named_or_counted(train_split, tmp_path):
    spec = changed(fails_on="Pt")
    with pytest.raises(DataError, match=r"record \d+ \(.*Pt.*\): the calculator fails .*for Pt"):
        make_second_views(train_split, spec, tmp_path / "views.lmdb", FEW)
    with_pt = sum(78 in structure.numbers for structure in iter_structures(train_split))
    out = tmp_path / "skipped.lmdb"
    meta = make_second_views(train_split, spec, out, replace(FEW, skip_failed=True))
    assert 0 < with_pt == meta["counts"]["failed"] < meta["counts"]["records"]
    assert meta["relative_error"] < 1e-3


def test_a_potential_that_fails_almost_everywhere_is_refused(train_split, tmp_path):
    with pytest.raises(DataError, match=r"the calculator fails on 10 of \d+ frames"):
        make_second_views(
            train_split,
            changed(fails_on="C"),
            tmp_path / "views.lmdb",
            replace(FEW, skip_failed=True),
        )


def test_a_killed_process_is_one_sentence(train_split, tmp_path, monkeypatch):
    def die(future):
        raise BrokenProcessPool

    monkeypatch.setattr(Future, "result", die)
    with pytest.raises(DataError, match=r"died .out of memory, or killed.*same command continues"):
        make_second_views(train_split, EXACT, tmp_path / "views.lmdb", replace(FEW, workers=2))


def test_the_time_of_a_calculation_is_not_that_of_remembering_one(train_split):
    """ASE's calculators return their last results again for the same positions."""
    spec = changed(takes_s=0.05)
    assert Potential(calculator_of(spec)).seconds(next(iter_structures(train_split))) >= 0.05
    # 30 structures take 1.5 s: in 24 s at most 16 calculations of each, two of them at X
    assert 2 <= fit_views._count(spec, train_split, frames=30, minutes=0.4) <= 14
    with pytest.raises(FitError, match=r"ndem data second-views .*train --calculator .* N\n"):
        fit_views._count(spec, train_split, frames=30, minutes=0.05)


def same_views(structures, ours, theirs) -> None:
    """Displacements to the bit, whatever the order; EMT's sums depend on the structure before."""
    ours, theirs = Sidecar(ours), Sidecar(theirs)
    for structure in structures:
        left, right = (views.get(digest_of(structure)) for views in (ours, theirs))
        assert left.eps.tobytes() == right.eps.tobytes()
        assert np.abs(left.force_change - right.force_change).max() < 1e-5
        assert np.abs(left.energy_change - right.energy_change).max() < 1e-9


def test_it_continues_where_it_was_stopped(train_split, sidecar, tmp_path, monkeypatch):
    out, seen = tmp_path / "views.lmdb", []

    def stops(potential, structure, draws):
        if len(seen) == 5:
            raise KeyboardInterrupt
        seen.append(structure)
        return views_of(potential, structure, draws)

    monkeypatch.setattr(make, "views_of", stops)
    with pytest.raises(KeyboardInterrupt):
        make_second_views(train_split, EXACT, out, FEW)
    with pytest.raises(DataError, match=r"is not finished \(5 structures so far"):
        Sidecar(out)
    monkeypatch.undo()
    made = []
    monkeypatch.setattr(
        make,
        "views_of",
        lambda potential, structure, draws: (
            made.append(structure),
            views_of(potential, structure, draws),
        )[1],
    )
    make_second_views(train_split, EXACT, out, FEW)
    structures = list(iter_structures(train_split))
    assert len(made) == len({digest_of(s) for s in structures}) - 5
    same_views(structures, out, sidecar)


def test_several_processes_give_the_same(train_split, sidecar, tmp_path):
    out = tmp_path / "views.lmdb"
    make_second_views(
        train_split, EXACT, out, MakeOptions(draws=FEW.draws, pairs=10, workers=2, progress=False)
    )
    same_views(iter_structures(train_split), out, sidecar)


def test_other_settings_need_another_file(train_split, sidecar):
    before = sidecar.read_bytes()
    with pytest.raises(DataError, match=r"made with another draws .*give another --out"):
        make_second_views(train_split, EXACT, sidecar, MakeOptions(draws=Draws(4), pairs=10))
    assert sidecar.read_bytes() == before


def test_other_files_are_left_alone(train_split, tmp_path):
    for name, content in (("empty", b""), ("text", b"not LMDB\n" * 1000)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="not a readable file of second views"):
            make_second_views(train_split, EXACT, tmp_path / name, FEW)
        assert (tmp_path / name).read_bytes() == content
    data = next(train_split.glob("*.lmdb"))
    before = data.read_bytes()
    with pytest.raises(DataError, match="not a file of second views"):
        make_second_views(train_split, EXACT, data, FEW)
    assert data.read_bytes() == before


def test_a_damaged_file_is_named(sidecar, tmp_path):
    cut = tmp_path / "cut.lmdb"
    cut.write_bytes(sidecar.read_bytes()[:-5000])
    with pytest.raises(DataError, match="truncated"):
        Sidecar(cut)


def test_the_command_says_what_it_made(train_split, tmp_path, capsys):
    out = tmp_path / "views.lmdb"
    words = ["data", "second-views", str(train_split), "--out", str(out), "--draws", "2"]
    assert main([*words, "--calculator", EXACT, "--pairs", "8", "--no-progress"]) == 0
    said = capsys.readouterr()
    assert "off by" in said.err
    assert "2 second views of" in said.out
    assert read_meta(out)["made_of"]["calculator"]["spec"] == EXACT
    assert main([*words, "--calculator", "nonsense"]) == 2
    assert "write MODULE:CALCULATOR" in capsys.readouterr().err


# --- symmetry ----------------------------------------------------------------------------------


def test_the_change_of_forces_turns_with_the_structure(train_split):
    structure = next(iter_structures(train_split))
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    turned = Structure(
        **{
            **vars(structure),
            "positions": structure.positions @ turn,
            "cell": structure.cell @ turn,
        }
    )
    _, eps = Draws(1, 0.03, 0.03).of(structure)
    potential = Potential(EMT())
    change = potential(structure, eps[0])[1] - potential(structure)[1]
    other = potential(turned, eps[0] @ turn)[1] - potential(turned)[1]
    assert np.abs(change).max() > 0.1
    assert np.abs(change @ turn - other).max() < 1e-3


# --- in training -------------------------------------------------------------------------------


def with_views(demo_data, sidecar, **ndem):
    return tiny_config(
        demo_data,
        **{"target": "second_views", "second_views": str(sidecar), "coefficient": 1.0, **ndem},
    )


def first_batch(trainer):
    return next(iter(trainer.train_loader))


def test_labels_are_the_potentials_in_the_units_of_the_data(demo_data, sidecar):
    settings = NDeMSettings(target="second_views", share=1.0)
    source = ViewSource(sidecar, demo_data / "train", settings)
    trainer_batch = _batch_of(demo_data)
    noise = source.draw(trainer_batch, step_generator(0, 0, 1))
    shown = view_forces(trainer_batch.forces, noise)
    energy = view_energy(trainer_batch.energy, trainer_batch.forces, noise, trainer_batch.batch)
    potential, bounds = Potential(EMT()), np.cumsum([0, *trainer_batch.natoms.tolist()])
    by_digest = {digest_of(s): s for s in iter_structures(demo_data / "train")}
    for number, structure in enumerate(_structures_of(trainer_batch, by_digest)):
        here = slice(bounds[number], bounds[number + 1])
        expected, forces = potential(structure, noise.eps[here].numpy())
        assert np.abs(shown[here].numpy() - forces).max() < 2e-3
        change = expected - potential(structure)[0]
        assert (energy - trainer_batch.energy)[number].item() == pytest.approx(change, abs=2e-3)
    assert noise.viewed.all()


def _batch_of(demo_data, count=4):
    from fairchem.core.datasets import create_dataset, data_list_collater

    keys = {"y": "energy", "force": "forces"}
    source = {"src": str(demo_data / "train"), "format": "ndem_lmdb", "key_mapping": keys}
    dataset = create_dataset(source, "train")
    return data_list_collater([dataset[7 * i] for i in range(count)], otf_graph=True)


def _structures_of(batch, by_digest):
    from ndem_ocp.second_views.sidecar import structure_digest

    for number in range(batch.natoms.numel()):
        here = batch.batch == number
        yield by_digest[
            structure_digest(
                batch.atomic_numbers[here].numpy(),
                batch.pos[here].numpy(),
                batch.cell[number].numpy(),
                batch.fixed[here].numpy(),
            )
        ]


def test_a_step_on_views_is_a_plain_step_on_displaced_structures(demo_data, sidecar, tmp_path):
    """All structures displaced: loss and gradient are those of the plain trainer on X + eps."""
    trainer = trainer_of(with_views(demo_data, sidecar, share=1.0), tmp_path / "views")
    plain = trainer_of(tiny_config(demo_data, coefficient=0.0), tmp_path / "plain")
    plain._unwrapped_model.load_state_dict(trainer._unwrapped_model.state_dict())
    batch = first_batch(trainer)
    gradients = []
    for each, prepare in ((trainer, lambda b: b), (plain, displaced_by(trainer, batch))):
        each.step = 3
        each.model.train()
        torch.manual_seed(0)
        shown = prepare(batch.clone())
        out = each._forward(shown)
        loss = each._compute_loss(out, shown)
        loss.backward()
        gradients.append((loss, [p.grad for p in each._unwrapped_model.parameters()]))
    (ours, mine), (theirs, other) = gradients
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for left, right in zip(mine, other, strict=True):
        assert (left is None) == (right is None)
        if left is not None:
            assert torch.allclose(left, right, rtol=1e-3, atol=1e-5 * right.abs().max().item())


def displaced_by(trainer, batch):
    def prepare(given):
        trainer.step = 3
        noise = trainer.ndem.draw(batch)
        given.pos = given.pos + noise.eps
        energy = view_energy(given.energy, given.forces, noise, given.batch)
        given.forces = view_forces(given.forces, noise)
        given.energy = energy
        return given

    return prepare


@pytest.mark.parametrize("target", ["second_views", "first_order"])
def test_what_is_logged_and_what_metrics_count(demo_data, sidecar, tmp_path, target):
    ndem = {"target": target, "share": 0.6, "trust": 0.1} if target == "second_views" else {
        "target": target, "share": 0.6, "second_views": None}  # fmt: skip
    config = with_views(demo_data, sidecar, **ndem)
    trainer = trainer_of(config, tmp_path)
    steps(trainer, 2)
    log = trainer.ndem.log
    assert 0 < log["ndem_share_of_atoms"].total < 1
    assert ("ndem_change_cosine" in log) == (target == "second_views")
    assert not [name for name, _ in trainer._unwrapped_model.named_parameters() if "noisy" in name]
    record = trainer.config["task"]["ndem"].get("second_views_of")
    assert (record is not None) == (target == "second_views")
    if record:
        assert record["spec"] == EXACT
        assert json.dumps(record)


def test_a_coefficient_of_zero_is_the_plain_trainer_to_the_bit(demo_data, sidecar, tmp_path):
    found = []
    for number, config in enumerate(
        (
            with_views(demo_data, sidecar, coefficient=0.0),
            with_views(demo_data, sidecar, share=0.0),
            tiny_config(demo_data, coefficient=0.0),
        )
    ):
        trainer = trainer_of(config, tmp_path / str(number))
        steps(trainer, 3)
        found.append(state_of(trainer))
    for other in found[:2]:
        assert all(torch.equal(other[name], value) for name, value in found[2].items())


def test_views_change_the_weights(demo_data, sidecar, tmp_path):
    """The comparison above can fail."""
    found = []
    for share in (0.0, 1.0):
        trainer = trainer_of(with_views(demo_data, sidecar, share=share), tmp_path / str(share))
        steps(trainer, 3)
        found.append(state_of(trainer))
    assert any(not torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_beside_their_structures_they_train_an_auxiliary_head(demo_data, sidecar, tmp_path):
    trainer = trainer_of(with_views(demo_data, sidecar, place="beside"), tmp_path)
    steps(trainer, 2)
    log = trainer.ndem.log
    assert log["ndem_loss"].total > 0
    assert {"ndem_change_slope", "ndem_change_error_eV_per_A"} <= set(log)


def test_a_changed_record_is_noticed(demo_data, sidecar, tmp_path):
    settings = NDeMSettings(target="second_views", share=1.0)
    source = ViewSource(sidecar, demo_data / "train", settings)
    batch = _batch_of(demo_data, 1)
    batch.pos[0, 0] += 1e-3
    with pytest.raises(DataError, match=r"has no entry for a training structure \(sid"):
        source.draw(batch, step_generator(0, 0, 1))
    with pytest.raises(DataError, match="was made for other records"):
        ViewSource(sidecar, demo_data / "val_ood", settings)


def test_a_range_of_sigma_selects_views(demo_data, sidecar):
    for low, high in ((0.02, 0.03), (0.04, 0.05)):
        settings = NDeMSettings(target="second_views", share=1.0, sigma_min=low, sigma_max=high)
        noise = ViewSource(sidecar, demo_data / "train", settings).draw(
            _batch_of(demo_data), step_generator(0, 0, 1)
        )
        assert low - 1e-6 <= noise.sigma.min() <= noise.sigma.max() <= high + 1e-6
    for low, high in ((0.0, 0.01), (0.05, 0.1)):  # apart, or in touch with an end
        far = NDeMSettings(target="second_views", sigma_min=low, sigma_max=high)
        with pytest.raises(
            DataError,
            match=r"average 0.0 of the 3 views .* set sigma_min: 0.02 and sigma_max: 0.05",
        ):
            ViewSource(sidecar, demo_data / "train", far)


def test_views_of_one_sigma_are_all_used(train_split, tmp_path):
    """0.05 is above 0.05 once it is stored in 32 bits."""
    out = tmp_path / "views.lmdb"
    make_second_views(train_split, EXACT, out, replace(FEW, draws=Draws(3, 0.05, 0.05)))
    settings = NDeMSettings(target="second_views", share=1.0, sigma_min=0.05, sigma_max=0.05)
    source = ViewSource(out, train_split, settings)
    sigma = source.sidecar.get(digest_of(next(iter_structures(train_split)))).sigma
    chosen = {source._choose(sigma, place, 0.0) for place in np.linspace(0, 0.999, 20)}
    assert chosen == set(range(len(sigma)))
    assert len(sigma) > 1


def test_resumed_runs_are_the_undisturbed_one_to_the_bit(demo_data, sidecar, tmp_path):
    config = short_run(
        demo_data,
        target="second_views",
        second_views=str(sidecar),
        coefficient=1.0,
        share={"0": 0.2, "1": 0.9},
        trust=0.05,
    )
    whole = run_to_end(config, tmp_path / "whole")
    run = tmp_path / "run"
    run.mkdir()
    assert finish(launch(config, run, hook=_dies_at(9)), run) == 9
    assert same_run(run_to_end(config, run), whole) == []


def _dies_at(step):
    def hook(trainer):
        forward = trainer._forward

        def dying(batch):
            if trainer.step >= step and trainer.model.training:
                os._exit(9)
            return forward(batch)

        trainer._forward = dying

    return hook


# --- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"target": "second_view"}, "Choose one of: isotropic, second_views, first_order"),
        ({"target": "first_order", "place": "beside"}, "task.ndem.place must be instead"),
        ({"place": "instead"}, "which need labels"),
        ({"target": "second_views", "curvature": 3.0}, "has no meaning with target: second_views"),
        ({"target": "second_views", "head": "shared"}, "has no meaning with target: second_views"),
        ({"share": 0.7}, "has no meaning with target: isotropic, place: beside"),
        ({"sigma_max": {"0": 0.1, "1": 0.2}}, "a schedule needs target: second_views"),
        ({"target": "second_views", "share": 1.5}, "must be in [0, 1]"),
        ({"target": "second_views", "share": {"2": 0.5}}, "fractions of training (0 to 1)"),
        ({"target": "second_views", "share": "half"}, "must be a finite number"),
        ({"target": "second_views", "trust": -1}, "must be > 0"),
        ({"target": "first_order", "trust": 1}, "has no meaning with target: first_order"),
        ({"objective": "dens", "target": "second_views"}, "has no meaning with objective: dens"),
    ],
)
def test_impossible_settings_are_named(given, said):
    with pytest.raises(SettingsError) as error:
        NDeMSettings.from_mapping(given)
    assert said in str(error.value)


def test_settings_read_back_what_they_write():
    given = {"target": "second_views", "share": {0: 0.3, 0.5: 0.6}, "sigma_max": {0: 0.01, 1: 0.05}}
    settings = NDeMSettings.from_mapping(given)
    assert NDeMSettings.from_mapping(settings.as_dict()) == settings


def test_a_writer_grows_its_file(tmp_path):
    writer = SidecarWriter(tmp_path / "views.lmdb", {"made_of": {}})
    writer._env.set_mapsize(1 << 16)
    for number in range(100):
        writer.add(b"%016d" % number, "x" * 5000)
    writer.finish()
    writer.close()
    assert len(Sidecar(tmp_path / "views.lmdb")) == 100


@pytest.mark.parametrize("scale", ["nan", "inf", "-inf", "one", "0"])
def test_a_scale_that_is_no_finite_number_is_refused(train_split, tmp_path, capsys, scale):
    words = ["data", "second-views", str(train_split), "--calculator", EXACT]
    assert main([*words, "--out", str(tmp_path / "v.lmdb"), f"--scale={scale}"]) == 2
    assert (
        f"--scale {scale}: give a number that is finite and not 0, or fit"
        in capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []


def test_a_directory_as_the_file_of_second_views_is_refused(train_split, tmp_path, capsys):
    words = ["data", "second-views", str(train_split), "--calculator", EXACT]
    assert main([*words, "--out", str(tmp_path)]) == 2
    assert f"{tmp_path}: this is a directory" in capsys.readouterr().err
