"""``ndem_ocp.calculator``: the numbers of validation, in eV, for structures that can be meant."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import add_adsorbate, fcc111, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.constraints import FixAtoms
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from fairchem.core.common.relaxation.ase_utils import OCPCalculator

import ndem_ocp
from conftest import tiny_config
from fairchem_kit.checkpoints import CheckpointError
from fairchem_kit.inference import CalculatorError
from ndem_ocp.testing import steps, trainer_of
from ndem_ocp.testing.runs import PLAIN_TRAINER

FRAMES = 1e-4  # EquiformerV2 turns its edge frames at random, and its grid is not exact
KCAL = units.kcal / units.mol


def saved(config, folder, count, name=None):
    """A trainer after some steps, with its files; it then holds its moving average."""
    trainer = trainer_of(config, folder, name)
    steps(trainer, count)
    trainer.last = trainer.save(checkpoint_file="checkpoint.pt", training_state=True)
    trainer.best = trainer.save(checkpoint_file="best_checkpoint.pt", training_state=False)
    trainer.ema.store()
    trainer.ema.copy_to()
    trainer.model.eval()
    return trainer


@pytest.fixture(scope="module")
def slabs(demo_data, tmp_path_factory):
    """EquiformerV2 with NDeM on slabs, whose average and last weights differ."""
    config = tiny_config(demo_data)
    config["optim"].update(ema_decay=0.9, lr_initial=0.01)
    return saved(config, tmp_path_factory.mktemp("slabs"), 6)


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    """``molecules(path, **settings)``: a run on MD17-like methanol in kcal/mol."""
    pytest.importorskip("torchmdnet", reason="torchmd-net is not installed (extra: molecules)")
    from ndem_ocp.cli import main
    from test_molecules import springs, tiny

    folder = tmp_path_factory.mktemp("md17")
    np.savez(folder / "methanol.npz", **springs(60))
    sizes = ["--train", "40", "--val", "10", "--test", "10", "--no-progress"]
    assert main(["data", "md17", f"{folder}/methanol.npz", "--out", f"{folder}/set", *sizes]) == 0
    return saved(tiny("md17/ethanol.yml", folder / "set", coefficient=1.0), folder, 20)


def slab(vacuum=8.0):
    atoms = fcc111("Cu", size=(2, 2, 3), vacuum=vacuum, periodic=True)
    add_adsorbate(atoms, "O", height=1.3, position="fcc")
    atoms.set_constraint(FixAtoms(mask=[atom.tag == 3 for atom in atoms]))
    return atoms


def of_record(record) -> Atoms:
    """The structure of one record."""
    return Atoms(
        record.atomic_numbers.numpy(),
        record.pos.numpy(),
        cell=record.cell[0].numpy(),
        pbc=record.pbc.numpy() if "pbc" in record else True,
    )


def validated(trainer, record):
    """(energy, forces) of a record as the trainer's validation computes them, its own unit."""
    from fairchem.core.datasets import data_list_collater

    batch = data_list_collater([record], otf_graph=True)
    out = trainer._forward(batch)
    found = (trainer._denorm_preds(name, out[name], batch) for name in ("energy", "forces"))
    return tuple(value.detach().numpy() for value in found)


# --- the numbers ---------------------------------------------------------------------------------


def test_numbers_are_those_of_validation_with_the_average(slabs):
    calculator = ndem_ocp.calculator(slabs.last, device="cpu")
    assert calculator.weights == "ema"
    raw = ndem_ocp.calculator(slabs.last, device="cpu", weights="last")
    for index in (0, 3):
        record = slabs.val_dataset[index]
        energy, forces = validated(slabs, record)
        atoms = of_record(record)
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(energy.item(), rel=FRAMES, abs=FRAMES)
        np.testing.assert_allclose(atoms.get_forces(), forces, atol=FRAMES * np.abs(forces).max())
        atoms.calc = raw
        assert np.abs(atoms.get_forces() - forces).max() > 0.01 * np.abs(forces).max()


def test_fairchems_calculator_gives_the_same_on_a_best_checkpoint(slabs):
    atoms = slab()
    atoms.calc = OCPCalculator(checkpoint_path=slabs.best, cpu=True, seed=0)
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc = ndem_ocp.calculator(slabs.best, device="cpu")
    assert atoms.calc.weights == "ema"
    assert atoms.get_potential_energy() == pytest.approx(energy, rel=FRAMES)
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=FRAMES * np.abs(forces).max())
    # a trap of fairchem's: of checkpoint.pt it takes the last step's weights
    atoms.calc = OCPCalculator(checkpoint_path=slabs.last, cpu=True, seed=0)
    of_last = atoms.get_forces()
    atoms.calc = ndem_ocp.calculator(slabs.last, device="cpu", weights="last")
    np.testing.assert_allclose(atoms.get_forces(), of_last, atol=FRAMES * np.abs(of_last).max())
    assert np.abs(of_last - forces).max() > 0.01 * np.abs(forces).max()


def test_a_checkpoint_of_fairchems_own_trainer(demo_data, tmp_path):
    """Its trainer is written as "s2ef", which fairchem's own calculator cannot find."""
    config = tiny_config(demo_data)
    config["task"].pop("ndem")
    trainer = saved(config, tmp_path, 3, PLAIN_TRAINER)
    record = trainer.val_dataset[0]
    energy, _ = validated(trainer, record)
    atoms = of_record(record)
    atoms.calc = ndem_ocp.calculator(trainer.last, device="cpu")
    assert atoms.calc.weights == "ema"  # by position in fairchem's files
    assert atoms.get_potential_energy() == pytest.approx(energy.item(), rel=FRAMES, abs=FRAMES)
    best = ndem_ocp.calculator(trainer.best, device="cpu")
    assert best.weights == "ema"  # in place of the weights, and nothing in the file says so
    with pytest.raises(CheckpointError, match=r"only has the moving average \(EMA\)"):
        ndem_ocp.calculator(trainer.best, device="cpu", weights="last")


def test_a_best_checkpoint_has_no_last_step(slabs):
    with pytest.raises(CheckpointError, match=r"only has the moving average \(EMA\)"):
        ndem_ocp.calculator(slabs.best, weights="last")
    with pytest.raises(CheckpointError, match="choose one of auto, ema, last"):
        ndem_ocp.calculator(slabs.best, weights="average")


def test_the_same_structure_gives_the_same_numbers(slabs):
    atoms = slab()
    atoms.calc = ndem_ocp.calculator(slabs.last, device="cpu")
    first = atoms.get_forces()
    atoms.rattle(0.1, seed=1)
    assert not np.array_equal(atoms.get_forces(), first)
    again = slab()
    again.calc = atoms.calc
    assert np.array_equal(again.get_forces(), first)


# --- units ---------------------------------------------------------------------------------------


def test_a_model_in_kcal_per_mol_gives_ev(molecules):
    record = molecules.val_dataset[0]
    energy, forces = validated(molecules, record)
    atoms = of_record(record)
    atoms.calc = ndem_ocp.calculator(molecules.last, device="cpu")
    assert atoms.get_potential_energy() == pytest.approx(energy.item() * KCAL, rel=1e-6)
    np.testing.assert_allclose(atoms.get_forces(), forces * KCAL, rtol=1e-3, atol=1e-4)
    atoms.calc = OCPCalculator(checkpoint_path=molecules.best, cpu=True, seed=0)
    assert atoms.get_potential_energy() == pytest.approx(energy.item(), rel=1e-6)  # kcal/mol


def test_units_that_the_checkpoint_does_not_say(molecules, tmp_path):
    content = torch.load(molecules.last, weights_only=True)
    del content["config"]["outputs"]["forces"]["unit"]
    torch.save(content, tmp_path / "half.pt")
    with pytest.raises(
        CalculatorError,
        match=r"energy are in kcal/mol .* but has no unit for "
        r"forces",
    ):
        ndem_ocp.calculator(tmp_path / "half.pt")
    given = {"energy": "kcal/mol", "forces": "kcal/mol/A"}
    atoms = molecule("CH3OH")
    atoms.calc = ndem_ocp.calculator(tmp_path / "half.pt", "cpu", units=given)
    forces = atoms.get_forces()
    atoms.calc = ndem_ocp.calculator(molecules.last, "cpu")
    assert np.array_equal(atoms.get_forces(), forces)
    with pytest.raises(CalculatorError, match="cannot convert 'furlong'"):
        ndem_ocp.calculator(molecules.last, units={"energy": "furlong"})
    with pytest.raises(CalculatorError, match="'force' is not known"):
        ndem_ocp.calculator(molecules.last, units={"force": "eV/A"})


def test_forces_are_the_slope_of_the_energy(molecules):
    """Central differences of energies near -50,000 kcal/mol, which float32 could not resolve."""
    atoms = molecule("CH3OH")
    atoms.rattle(0.05, seed=2)
    atoms.calc = ndem_ocp.calculator(molecules.last, device="cpu")
    forces = atoms.get_forces()
    step = 2e-3
    for atom, axis in ((0, 0), (1, 2), (4, 1)):
        ends = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            moved.calc = atoms.calc
            ends.append(moved.get_potential_energy())
        slope = (ends[0] - ends[1]) / (2 * step)
        assert forces[atom, axis] == pytest.approx(-slope, rel=0.01, abs=0.01)


# --- in use --------------------------------------------------------------------------------------


def test_an_adsorbate_is_relaxed(slabs):
    atoms = slab()
    atoms.calc = ndem_ocp.calculator(slabs.last)
    before = atoms.get_positions()
    BFGS(atoms, logfile=None).run(fmax=1e-4, steps=4)
    moved = np.linalg.norm(atoms.get_positions() - before, axis=1)
    assert np.isfinite(atoms.get_potential_energy())
    assert (moved[atoms.constraints[0].index] == 0).all()
    assert moved[-1] > 1e-3
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()


def test_md_of_a_molecule_without_a_cell_keeps_its_energy(molecules):
    atoms = molecule("CH3OH")
    atoms.calc = ndem_ocp.calculator(molecules.last)
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(0))
    start, kinetic, totals = atoms.get_total_energy(), [], []
    dynamics = VelocityVerlet(atoms, 0.25 * units.fs)
    dynamics.attach(lambda: totals.append(atoms.get_total_energy()))
    dynamics.attach(lambda: kinetic.append(atoms.get_kinetic_energy()))
    dynamics.run(60)
    assert np.ptp(kinetic) > 0.02  # eV
    assert np.abs(np.array(totals) - start).max() < 0.1 * np.ptp(kinetic)


def test_md_with_direct_forces(slabs):
    """EquiformerV2 on a molecule in no cell: the model is trained with cells and needs none."""
    atoms = molecule("CH3CH2OH")
    atoms.calc = ndem_ocp.calculator(slabs.last)
    MaxwellBoltzmannDistribution(atoms, temperature_K=50, rng=np.random.default_rng(0))
    VelocityVerlet(atoms, 0.2 * units.fs).run(3)
    assert np.isfinite(atoms.get_forces()).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_and_cpu_agree(slabs, molecules):
    for path, atoms in ((slabs.last, slab()), (molecules.last, molecule("CH3OH"))):
        found = {}
        for device in ("cpu", "cuda"):
            atoms.calc = ndem_ocp.calculator(path, device=device)
            assert atoms.calc.trainer.device.type == device
            found[device] = (atoms.get_potential_energy(), atoms.get_forces())
        assert found["cuda"][0] == pytest.approx(found["cpu"][0], rel=1e-3, abs=1e-3)
        scale = np.abs(found["cpu"][1]).max()
        np.testing.assert_allclose(found["cuda"][1], found["cpu"][1], atol=2e-3 * scale)


def test_the_process_is_as_it_was(slabs, capfd):
    root = logging.getLogger()
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002 (the generator that fairchem seeds)
    torch.manual_seed(5)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())  # noqa: NPY002
    logging_before = (root.level, list(root.handlers), root.manager.disable)
    flags = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    atoms = slab()
    atoms.calc = ndem_ocp.calculator(slabs.last, device="cpu")
    atoms.get_forces()
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    assert (root.level, list(root.handlers), root.manager.disable) == logging_before
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == flags
    assert capfd.readouterr().out == ""


# --- what is refused -----------------------------------------------------------------------------


def test_stress_is_refused_in_a_sentence(slabs):
    atoms = slab()
    atoms.calc = ndem_ocp.calculator(slabs.last, device="cpu")
    with pytest.raises(PropertyNotImplementedError, match="trained on energies and forces"):
        atoms.get_stress()


def two(atoms, distance):
    """Leave two atoms, in a cell of 80 A."""
    del atoms[2:]
    atoms.set_cell([80.0] * 3)
    atoms.positions[:] = [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0 + distance]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.positions.__setitem__((2, 1), np.nan), "NaN or infinite, first atom 2"),
        (lambda a: a.numbers.__setitem__(0, 92), "no embedding for U: .* from H to Ac"),
        (lambda a: a.numbers.__setitem__(0, 0), "no embedding for number 0"),
        (lambda a: a.set_cell([5, 5, 0]), "periodic along lattice vector 3"),
        (lambda a: a.set_cell([[5, 0, 0], [5, 0, 0], [0, 0, 9]]), "volume 0"),
        (lambda a: a.__delitem__(slice(None)), "no atoms"),
        (lambda a: (a.__delitem__(slice(1, None)), a.set_pbc(False)), "no neighbours"),
        (
            lambda a: (a.__delitem__(slice(1, None)), a.set_cell([20] * 3)),
            "No atom has a neigh.* 4 A",
        ),
        (lambda a: two(a, 30.0), "No atom has a neighbour within 4 A"),
        (lambda a: (two(a, 30.0), a.set_pbc(False)), "No atom has a neighbour within 4 A"),
        (lambda a: two(a, 0.0), "Atoms 0 and 1 are at the same position"),
        (lambda a: two(a, 80.0), r"Atoms 0 and 1 are at the same position .*images included"),
        (
            lambda a: a.positions.__setitem__(12, a.positions[3]),
            "Atoms 3 and 12 are at the same position",
        ),
    ],
)
def test_structures_that_make_no_sense_are_refused(slabs, change, words):
    atoms = slab()
    atoms.set_constraint()
    change(atoms)
    atoms.calc = ndem_ocp.calculator(slabs.last, device="cpu")
    with pytest.raises(CalculatorError, match=words):
        atoms.get_potential_energy()


def test_few_neighbours_are_enough(slabs):
    calculator = ndem_ocp.calculator(slabs.last, device="cpu")
    lone = Atoms("Cu", cell=[2.6] * 3, pbc=True)  # its own images
    skewed = Atoms("Cu", cell=[[9, 0, 0], [8, 3.5, 0], [0, 0, 20]], pbc=True)  # a - b is short
    apart = slab()
    apart.append("O")  # and one that has none
    apart.positions[-1] = apart.positions[0] + [0, 0, -8.0]
    apart.center(vacuum=12.0, axis=2)
    for atoms in (lone, skewed, apart):
        atoms.calc = calculator
        assert np.isfinite(atoms.get_potential_energy())


@pytest.mark.parametrize("pbc", [False, (True, True, False)])
def test_a_structure_that_is_far_from_the_origin_is_the_same_structure(slabs, pbc):
    calculator = ndem_ocp.calculator(slabs.last, device="cpu")
    here = slab()
    here.set_constraint()
    here.pbc = pbc
    there = here.copy()
    there.positions += [0.0, 0.0, 1e7]
    found = []
    for atoms in (here, there):
        atoms.calc = calculator
        found.append((atoms.get_potential_energy(), atoms.get_forces()))
        assert not calculator.calculation_required(atoms, ["energy", "forces"])
    assert found[0][0] == pytest.approx(found[1][0], abs=FRAMES)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=FRAMES)


def test_a_model_without_periodicity_refuses_a_periodic_structure(slabs, tmp_path):
    content = torch.load(slabs.last, weights_only=True)
    content["config"]["model"]["backbone"]["use_pbc"] = False
    torch.save(content, tmp_path / "cluster.pt")
    atoms = slab()
    atoms.calc = ndem_ocp.calculator(tmp_path / "cluster.pt", device="cpu")
    with pytest.raises(CalculatorError, match=r"the model is not .*use_pbc: False"):
        atoms.get_potential_energy()


def test_files_and_devices_that_are_not_there(slabs, tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        ndem_ocp.calculator(tmp_path / "none.pt")
    with pytest.raises(CalculatorError, match="cpu, cuda, cuda:N, or None"):
        ndem_ocp.calculator(slabs.last, device="gpu")
    with pytest.raises(CalculatorError, match="torch sees"):
        ndem_ocp.calculator(slabs.last, device="cuda:99")
    content = torch.load(slabs.last, weights_only=True)
    content["config"]["outputs"] = {"gap": content["config"]["outputs"]["energy"]}
    torch.save(content, tmp_path / "gap.pt")
    with pytest.raises(CalculatorError, match=r"has no output 'energy' \(its outputs: gap\)"):
        ndem_ocp.calculator(tmp_path / "gap.pt")
    del content["config"]
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="contains no configuration"):
        ndem_ocp.calculator(tmp_path / "weights.pt")
