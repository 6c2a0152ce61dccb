"""fairchem_kit.curvature.correction: what a calculator gets wrong in a regular way."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.morse import MorsePotential

from fairchem_kit.calculators.potential import Potential
from fairchem_kit.curvature import correction
from fairchem_kit.curvature.bodies import Pairs, Triples
from fairchem_kit.curvature.correction import Correction, fit_correction
from fairchem_kit.curvature.pairs import near_pairs
from fairchem_kit.data.records import Structure, iter_structures
from ndem_ocp.cli import main
from ndem_ocp.second_views.draws import Draws, digest_of
from ndem_ocp.second_views.make import MakeOptions, make_second_views
from ndem_ocp.second_views.sidecar import Sidecar

ELEMENTS = (1, 8, 29)
BASES = pytest.mark.parametrize(
    "basis", [Pairs(ELEMENTS), Triples(ELEMENTS, width=0.5)], ids=["pairs", "triples"]
)


class Distorted(Calculator):
    """EMT and a Morse potential, which is what a correction has to find."""

    implemented_properties = ("energy", "forces")

    def __init__(self) -> None:
        super().__init__()
        self._parts = (EMT(), MorsePotential(epsilon=0.02, r0=2.6, rho0=3.0, rcut1=3.5, rcut2=4.5))

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0, "forces": 0.0}
        for part in self._parts:
            copy = atoms.copy()
            copy.calc = part
            self.results["energy"] += copy.get_potential_energy()
            self.results["forces"] = self.results["forces"] + copy.get_forces()


DISTORTED = f"{__file__}:Distorted()"


@pytest.fixture
def crystal():
    """Nine atoms of three elements in a small periodic cell, so that atoms see their own images."""
    random = np.random.default_rng(0)
    places = np.array([[x, y, z] for x in range(3) for y in range(3) for z in range(1)]) * 1.6
    return Structure(
        file="made", number=0, sid=None, numbers=np.array(ELEMENTS * 3),
        positions=(places + 0.2 * random.standard_normal((9, 3))).astype(np.float64),
        cell=np.diag([4.8, 4.8, 3.0]), pbc=np.array([True, True, True]), free=np.ones(9, bool),
        forces=None, energy=None,
    )  # fmt: skip


@BASES
def test_forces_are_the_gradient_of_the_energy(basis, crystal):
    coefficients = np.random.default_rng(1).standard_normal(basis.size)
    _, forces = basis.terms(crystal).energy_and_forces(coefficients)
    each = basis.terms(crystal).forces_of_each(basis.size)
    np.testing.assert_allclose(each @ coefficients, forces, atol=1e-10)
    np.testing.assert_allclose(forces.sum(0), 0, atol=1e-10)
    for atom, axis in ((0, 0), (4, 1), (8, 2)):
        step = np.zeros((9, 3))
        step[atom, axis] = 1e-4
        up, down = (
            basis.terms(crystal, sign * step).energy_and_forces(coefficients)[0] for sign in (1, -1)
        )
        assert forces[atom, axis] == pytest.approx(-(up - down) / 2e-4, rel=1e-5, abs=1e-6)


@BASES
def test_energy_is_the_same_for_atoms_in_another_order(basis, crystal):
    coefficients = np.random.default_rng(1).standard_normal(basis.size)
    order = np.random.default_rng(2).permutation(9)
    other = dataclasses.replace(
        crystal, numbers=crystal.numbers[order], positions=crystal.positions[order]
    )
    energy, forces = basis.terms(crystal).energy_and_forces(coefficients)
    same, moved = basis.terms(other).energy_and_forces(coefficients)
    assert same == pytest.approx(energy)
    np.testing.assert_allclose(moved, forces[order], atol=1e-9)


@pytest.fixture(scope="module")
def frames(demo_data):
    """Structures, labels, forces of the distorted potential, and near pairs of the demo's data."""
    structures = list(iter_structures(demo_data / "train"))
    labels = {i: s.forces for i, s in enumerate(structures)}
    potential = Potential(Distorted())
    scaled = {i: potential(s)[1] for i, s in enumerate(structures)}
    return structures, labels, scaled, near_pairs(structures, 20)


def test_a_distortion_by_pairs_is_found(frames):
    structures, labels, scaled, pairs = frames
    found, changes = fit_correction(structures, labels, scaled, pairs)
    true = [pair.change(labels[pair.first], labels[pair.second]) for pair in pairs]
    wrong = np.linalg.norm(np.concatenate(changes) - np.concatenate(true))
    assert wrong / np.linalg.norm(np.concatenate(true)) == pytest.approx(found.error)
    assert found.error_without > 0.1
    assert found.error < 0.2 * found.error_without
    structure = structures[pairs[0].first]
    eps = np.where(structure.free[:, None], 0.03, 0.0) * np.ones((1, 3))
    eps[np.flatnonzero(structure.free)[0]] *= -1
    exact, distorted = Potential(EMT()), Potential(Distorted())
    changes = [
        potential(structure, eps)[1] - potential(structure)[1]
        for potential in (exact, distorted, found.corrected(distorted, 1.0))
    ]
    free = structure.free
    before, after = (np.abs(change - changes[0])[free].mean() for change in changes[1:])
    assert after < 0.3 * before
    again = Correction(**json.loads(json.dumps(found.as_dict())))
    np.testing.assert_array_equal(again(structure, eps)[1], found(structure, eps)[1])


@pytest.fixture
def pairs_alone(monkeypatch):
    """Fits without triples, which take a hundredth of the time."""
    monkeypatch.setattr(correction, "_MOST_COEFFICIENTS", 500)


def test_an_exact_potential_and_noise_have_no_correction(frames, pairs_alone):
    structures, labels, _, pairs = frames
    assert fit_correction(structures, labels, labels, pairs) is None
    random = np.random.default_rng(0)
    noisy = {i: f + 0.3 * random.standard_normal(f.shape) for i, f in labels.items()}
    assert fit_correction(structures, labels, noisy, pairs) is None
    assert fit_correction(structures, labels, labels, pairs[:4]) is None


def test_views_have_the_corrected_change(demo_data, tmp_path, capsys, pairs_alone):
    draws = Draws(2, 0.02, 0.05)
    options = MakeOptions(draws=draws, pairs=20, progress=False)
    meta = make_second_views(demo_data / "train", DISTORTED, tmp_path / "views.lmdb", options)
    assert "left out of the fit" in capsys.readouterr().err
    found = Correction(**meta["correction"])
    structure = next(iter(iter_structures(demo_data / "train")))
    potential = found.corrected(Potential(Distorted()), meta["scale"])
    views = Sidecar(tmp_path / "views.lmdb").get(digest_of(structure))
    change = potential(structure, views.eps[0])[1] - potential(structure)[1]
    np.testing.assert_allclose(views.force_change[0], change, atol=1e-5)
    workers = dataclasses.replace(options, workers=2)
    make_second_views(demo_data / "train", DISTORTED, tmp_path / "two.lmdb", workers)
    same = Sidecar(tmp_path / "two.lmdb").get(digest_of(structure))
    np.testing.assert_allclose(same.force_change, views.force_change, atol=1e-6)


def test_no_correction_is_an_option_and_is_remembered(demo_data, tmp_path, capsys, pairs_alone):
    out = tmp_path / "views.lmdb"
    command = ["data", "second-views", str(demo_data / "train"), "--calculator", DISTORTED,
               "--draws", "1", "--no-progress", "--out", str(out)]  # fmt: skip
    assert main([*command, "--correction", "none"]) == 0
    assert Sidecar(out).correction is None
    assert main(command) == 2
    assert "another correction (none)" in capsys.readouterr().err


def test_views_from_the_data_alone(demo_data, tmp_path, capsys):
    words = ["--draws", "1", "--pairs", "20", "--no-progress"]
    out = tmp_path / "views.lmdb"
    command = ["data", "second-views", str(demo_data / "train"), "--calculator", "data"]
    assert main([*command, *words, "--out", str(out)]) == 0
    assert 0 < Sidecar(out).relative_error < 0.5
    assert Sidecar(out).meta["scale"] == 1
    structure = next(iter(iter_structures(demo_data / "train")))
    views = Sidecar(out).get(digest_of(structure))
    exact = Potential(EMT())
    change = exact(structure, views.eps[0])[1] - exact(structure)[1]
    free = structure.free
    assert np.abs(views.force_change[0] - change)[free].mean() < 0.5 * np.abs(change[free]).mean()
    capsys.readouterr()
    refused = [*command, *words, "--correction", "none", "--out", str(tmp_path / "no.lmdb")]
    assert main(refused) == 2
    assert "Give a calculator, or more frames" in capsys.readouterr().err
    assert not (tmp_path / "no.lmdb").exists()
