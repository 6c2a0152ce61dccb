"""Frequencies of a minimum, `ndem vibrations`, and the experiment and table made with it."""

from __future__ import annotations

import json
from argparse import Namespace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.harmonic import HarmonicCalculator, HarmonicForceField
from ase.constraints import FixAtoms, FixBondLength
from ase.io import write

from conftest import short_training
from fairchem_kit.data.records import iter_structures
from fairchem_kit.evaluation.errors import EvaluationError
from fairchem_kit.evaluation.frequencies import (
    Vibrations,
    force_constants,
    frequencies_of,
    internal_motions,
    vibrations,
)
from fairchem_kit.evaluation.vibrations import _about, _table, _with_calculator
from ndem_ocp.bench.experiments import vibrations as experiment
from ndem_ocp.bench.experiments.vibrations_reference import DIHEDRALS, start
from ndem_ocp.bench.pages import vibrations as page
from ndem_ocp.cli import main

EXACT = "ase.calculators.emt:EMT()"
SPRING = 3.0  # eV/A^2


def spring_atoms() -> Atoms:
    """Three atoms in a cell, each on a spring."""
    atoms = Atoms("H3", positions=[[0, 0, 0], [5, 0, 0], [0, 7, 0]], cell=np.eye(3) * 20, pbc=True)
    field = HarmonicForceField(ref_atoms=atoms.copy(), ref_energy=0.0, hessian_x=SPRING * np.eye(9))
    atoms.calc = HarmonicCalculator(field)
    return atoms


def test_frequencies_of_springs_are_known():
    """nu = sqrt(k/m) / (2 pi c) for each of an atom's three directions, in all motions but those of
    all atoms together."""
    atoms = spring_atoms()
    expected = np.sqrt(SPRING * 1.602176634e-19 / 1e-20 / (1.008 * 1.66053907e-27))
    expected /= 2 * np.pi * 2.99792458e10
    found = frequencies_of(atoms, force_constants(atoms))
    assert found == pytest.approx(np.full(6, expected), rel=1e-3)
    atoms.set_constraint(FixAtoms([0]))
    found = frequencies_of(atoms, force_constants(atoms))
    assert found == pytest.approx(np.full(6, expected), rel=1e-3)


def test_a_free_molecule_has_3n_minus_6_and_a_linear_one_3n_minus_5():
    for name, count in (("H2O", 3), ("CO2", 4), ("CH4", 9), ("N2", 1)):
        atoms = molecule(name)
        found = vibrations(atoms, EMT(), 0.05)
        assert len(found.frequencies) == count
        assert found.fmax <= 0.05
        assert found.converged


@pytest.mark.parametrize(("fixed", "count"), [((), 9), ((0,), 9), ((0, 1), 8), ((0, 1, 2), 6)])
def test_only_motions_that_leave_fixed_atoms_in_place_are_no_vibrations(fixed, count):
    """Of methane: with one fixed atom it can still turn, with two about their axis."""
    atoms = molecule("CH4", calculator=EMT())
    atoms.set_constraint(FixAtoms(fixed))
    assert len(frequencies_of(atoms, force_constants(atoms))) == count


def test_a_crystal_has_no_translations_among_its_frequencies():
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    found = frequencies_of(atoms, force_constants(atoms))
    assert len(found) == 9
    assert found.min() > 100


def test_a_soft_imaginary_mode_is_not_taken_for_a_rotation():
    """Far from a minimum the rotations of the Hessian are not zero; a softer mode must stay."""
    atoms = molecule("H2O")
    inside = internal_motions(atoms)
    weight = np.repeat(atoms.get_masses(), 3) ** 0.5
    rotations = 1e-2 * (np.eye(9) - inside.T @ inside)  # eV/A^2/u
    soft = inside.T @ np.diag([-1e-4, 4.0, 5.0]) @ inside
    found = frequencies_of(atoms, (soft + rotations) * np.outer(weight, weight))
    assert len(found) == 3
    assert -10 < found[0] < -1
    assert found[1] > 1000


def test_constraints_that_are_not_understood_are_refused():
    atoms = molecule("H2O")
    atoms.set_constraint(FixBondLength(0, 1))
    with pytest.raises(EvaluationError, match="FixBondLength"):
        vibrations(atoms, EMT())


def test_the_command_compares_with_a_calculator(demo_data, tmp_path, capsys):
    checkpoint = short_training(demo_data, tmp_path) / "best_checkpoint.pt"
    structure = next(iter_structures(demo_data / "val_id"))
    atoms = Atoms(
        structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc,
        constraint=FixAtoms(mask=~structure.free),
    )  # fmt: skip
    atoms.write(tmp_path / "start.traj")
    out = tmp_path / "found.json"
    words = ["vibrations", str(checkpoint), str(tmp_path / "start.traj"), "--cpu", "--fmax", "0.5"]
    assert main([*words, "--calculator", EXACT, "--json", str(out)]) == 0
    assert "mean |error|" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert len(found["frequencies_invcm"]) == 3 * structure.free.sum()
    assert found["mae_invcm"] > 0
    assert found["converged"] is (found["fmax_eV_per_A"] <= 0.5)
    assert found["reference_converged"] is True
    assert (found["moved_A"] > 0) is (found["relaxation_steps"] > 0)


def test_what_is_not_a_minimum_is_said_of_the_reference_too():
    saddle = Vibrations(molecule("H2O"), np.array([-300.0, 1500, 3700]), 0.2, 500, False, 0.1)
    minimum = Vibrations(molecule("H2O"), np.array([300.0, 1500, 3700]), 0.001, 9, True, 0.1)
    about = _about(minimum, saddle.frequencies, saddle)
    printed = _table(minimum, saddle.frequencies, saddle, about)
    assert "The relaxation with the reference stopped" in printed
    assert "1 imaginary with the reference" in printed
    assert "the model stopped" not in printed
    assert about["reference_converged"] is False
    assert about["reference_imaginary"] == 1


def test_bad_references_are_one_sentence(tmp_path, capsys):
    """Before anything is computed: the checkpoint has not been read."""
    checkpoint, water, numbers = (tmp_path / name for name in ("best.pt", "water.xyz", "nu.txt"))
    checkpoint.write_bytes(b"")
    molecule("H2O").write(water)
    words = ["vibrations", str(checkpoint), str(water), "--reference", str(numbers)]
    for text, said in (
        ("100.0\n", "the reference has 1 frequencies, but the structure 3"),
        ("1 2 3\n4 5 6\n", "the reference has 6 frequencies"),
        ("1600\nnan\n3700\n", "not a finite number"),
        ("1600i\n", "one frequency in cm^-1 per line"),
    ):
        numbers.write_text(text)
        assert main(words) == 2
        assert said in capsys.readouterr().err
    assert main([*words, "--calculator", EXACT]) == 2
    assert "not allowed with" in capsys.readouterr().err


def test_a_reference_that_fails_is_one_sentence(tmp_path):
    args = Namespace(calculator=EXACT, structure=tmp_path / "uranium.xyz", fmax=0.01)
    with pytest.raises(EvaluationError, match=r"uranium\.xyz \(NotImplementedError"):
        _with_calculator(Atoms("U2", positions=[[0, 0, 0], [0, 0, 2]]), args)


# --- the experiment ------------------------------------------------------------------------------


def test_errors_are_those_of_the_modes_in_each_band():
    positions = molecule("H2O").positions
    own = {"symbols": list("OHH"), "positions_A": positions, "frequencies_invcm": [310, 1380, 3100]}
    moved = {**own, "positions_A": positions + 1.0, "frequencies_invcm": [1400, 300, 3000]}
    found = experiment.compared({"one": own}, {"one": moved})
    assert found["mae_invcm"] == {"all": 130 / 3, "low": 10, "middle": 20, "stretches": 100}
    assert found["conformers"]["one"]["distance_of_minima_A"] == pytest.approx(0, abs=1e-6)


def test_frequencies_are_kept_until_the_model_changes(tmp_path, monkeypatch):
    made = []

    def make():
        made.append(1)
        return EMT()

    monkeypatch.setattr(experiment, "OUT", tmp_path / "vibrations" / "ethanol.json")
    first = experiment.kept("name", "weights", make, "trans")
    assert experiment.kept("name", "weights", make, "trans") == first
    assert len(made) == 1
    assert len(first["frequencies_invcm"]) == 21
    experiment.kept("name", "others", make, "trans")
    assert len(made) == 2


def test_the_conformers_differ_in_one_dihedral():
    bonds = []
    for name, degrees in DIHEDRALS.items():
        atoms = start(name)
        assert atoms.get_dihedral(0, 1, 2, 3) == pytest.approx(degrees)
        bonds.append([atoms.get_distance(*pair) for pair in ((0, 1), (1, 2), (2, 3))])
    assert bonds[0] == pytest.approx(bonds[1])


def test_the_table_takes_errors_at_minima_and_counts_the_others(tmp_path):
    wanted = {
        "symbols": list("OHH"),
        "positions_A": molecule("H2O").positions.tolist(),
        "frequencies_invcm": [300.0, 1400.0, 3000.0],
        "d3_shifts_invcm": [2.0, 0.1, 0.1],
    }

    def arm(*offsets: float, converged: bool = True) -> dict:
        models = {
            seed: {
                "trans": {
                    **wanted,
                    "frequencies_invcm": [value + off for value in wanted["frequencies_invcm"]],
                    "imaginary": 0,
                    "converged": converged or seed > 0,
                }
            }
            for seed, off in enumerate(offsets)
        }
        return experiment.over_seeds(models, {"trans": wanted})

    potential = arm(7)["runs"][0]
    found = {
        "commit": "0123456789abcdef",
        "bands_invcm": experiment.BANDS,
        "reference": {
            "method": "PBE",
            "packages": {"pyscf": "2"},
            "conformers": {"trans": wanted},
        },
        "potential": {"made_of": {"package": "ase", "version": "1", "spec": EXACT}, **potential},
        "cases": {
            "ethanol_50_x2": {
                "plain": arm(900, 19, 21, converged=False),
                "instead": arm(9, 10, 11),
            }
        },
    }
    (tmp_path / "vibrations_ethanol.json").write_text(json.dumps(found))
    text = page.vibrations(tmp_path)
    assert "| 2 of 3 | 20.0 ± 1.4 |" in text
    assert "| 3 of 3 | 10.0 ± 1.0 (-50 %) |" in text
    assert "| 7.0 | 7.0 | 7.0 | 7.0 | 0.000 |" in text
    assert "at most 2." in text
    assert "below 1000 | 1000 to 2700 | above 2700" in text


def test_positions_that_are_no_numbers_and_no_force_limit_are_refused(tmp_path, capsys):
    (tmp_path / "model.pt").write_text("not read before the structure")
    for number, words, options in (
        (np.nan, "atoms.traj: a position or the cell is NaN", []),
        (0.0, "--fmax must be above 0", ["--fmax", "0"]),
    ):
        write(tmp_path / "atoms.traj", Atoms("Cu2", [[number, 0, 0], [0, 0, 2.0]]))
        words_of = ["vibrations", str(tmp_path / "model.pt"), str(tmp_path / "atoms.traj")]
        assert main([*words_of, *options]) == 2
        assert words in capsys.readouterr().err
