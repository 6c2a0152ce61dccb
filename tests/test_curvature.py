"""How forces change over near frames: pairs, errors, the command."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
from ase.calculators.emt import EMT

from conftest import ROOT, short_training
from fairchem_kit.calculators.potential import Potential
from fairchem_kit.curvature.measure import agreement_of, isotropic
from fairchem_kit.curvature.pairs import near_pairs
from fairchem_kit.data.records import Structure, iter_structures
from ndem_ocp.cli import main

EXACT = "ase.calculators.emt:EMT()"
SPRING = 3.0  # eV/A^2


def frame(number: int, positions, forces, cell: float = 0.0) -> Structure:
    """Five carbon atoms of system 7; periodic with a ``cell`` (A)."""
    return Structure(
        file="file",
        number=number,
        sid=7,
        numbers=np.full(5, 6),
        positions=positions.astype(np.float32),
        cell=np.eye(3) * cell,
        pbc=np.full(3, cell > 0),
        free=np.ones(5, bool),
        forces=forces,
        energy=0.0,
    )


def springs(count: int = 12) -> list[Structure]:
    """Frames of five atoms in a cell, each on a spring: F = -SPRING (x - x0). Atoms are written on
    any side of the cell, as programs do."""
    random = np.random.default_rng(0)
    rest = random.normal(size=(5, 3)) * 2
    frames = []
    for number in range(count):
        moved = rest + 0.03 * random.normal(size=(5, 3))
        wrapped = moved + 20.0 * random.integers(-1, 2, size=(5, 3))
        frames.append(frame(number, wrapped, -SPRING * (moved - rest), cell=20.0))
    return frames


def bonded(turned: bool, count: int = 12) -> list[Structure]:
    """Frames of a molecule of five atoms with a spring between each two, as they are or turned."""
    random = np.random.default_rng(0)
    rest = random.normal(size=(5, 3)) * 2
    lengths = np.linalg.norm(rest[:, None] - rest[None], axis=-1)
    frames = []
    for number in range(count):
        moved = rest + 0.03 * random.normal(size=(5, 3))
        apart = moved[:, None] - moved[None]
        size = np.linalg.norm(apart, axis=-1)
        pull = SPRING * np.where(size > 0, lengths / np.where(size > 0, size, 1) - 1, 0)
        forces = (pull[..., None] * apart).sum(1)
        rotation, _ = np.linalg.qr(random.normal(size=(3, 3)))
        rotation *= np.sign(np.linalg.det(rotation))
        rotation = rotation if turned else np.eye(3)
        frames.append(frame(number, moved @ rotation, forces @ rotation))
    return frames


def test_springs_have_the_curvature_of_springs():
    frames = springs()
    pairs = near_pairs(frames)
    found = isotropic(frames, pairs)
    assert len(pairs) >= 4
    assert found.scale == pytest.approx(SPRING, rel=1e-4)
    assert found.relative_error < 1e-3
    assert found.by_displacement[0][0] <= found.by_displacement[-1][1]


def test_rotated_molecules_are_rotated_back():
    ours, theirs = (isotropic(f, near_pairs(f)) for f in (bonded(True), bonded(False)))
    assert ours.pairs == theirs.pairs >= 4
    assert ours.scale == pytest.approx(theirs.scale, rel=1e-4)
    assert ours.relative_error == pytest.approx(theirs.relative_error, rel=1e-4)
    assert 0.1 < ours.relative_error < 0.99


def test_a_scaled_potential_has_its_scale_and_no_error():
    frames = springs()
    pairs = near_pairs(frames)
    found = agreement_of("twice", frames, pairs, lambda i: 2 * frames[i].forces + 1.0)
    assert found.scale == pytest.approx(0.5)
    assert found.relative_error == pytest.approx(0.0, abs=1e-9)
    assert found.unscaled_error == pytest.approx(1.0)
    assert found.forces_error > 1
    nothing = agreement_of("none", frames, pairs, lambda i: 0 * frames[i].forces)
    assert nothing.relative_error == pytest.approx(1.0)


def test_pairs_are_near_of_one_system_and_used_once(demo_data):
    structures = list(iter_structures(demo_data / "train"))
    pairs = near_pairs(structures, 15, (0.01, 0.2))
    assert pairs
    used = [i for pair in pairs for i in (pair.first, pair.second)]
    assert len(used) == len(set(used))
    for pair in pairs:
        assert structures[pair.first].sid == structures[pair.second].sid
        largest = np.linalg.norm(pair.moved[pair.free], axis=1).max()
        assert 0.01 <= largest <= 0.2
    assert len(near_pairs(structures, 3)) == 3
    assert near_pairs(structures, 10, (5.0, 6.0)) == []


def test_the_potential_of_the_data_is_without_error(demo_data, tmp_path, capsys):
    out, figure = tmp_path / "found.json", tmp_path / "found.png"
    words = ["data", "curvature", str(demo_data / "train"), "--pairs", "10", "--calculator", EXACT]
    assert main([*words, "--json", str(out), "--figure", str(figure)]) == 0
    table = capsys.readouterr().out
    assert "isotropic c" in table
    assert "EMT()" in table
    assert "scale: c in eV/A^2, or" in table
    assert "EMT() predicts the change of forces with an error of 0.0%" in table
    command = ["ndem", "data", "second-views", words[2], "--calculator", EXACT]
    assert shlex.split(table.splitlines()[-1]) == [*command, "--out", "views.lmdb"]
    stored = json.loads(out.read_text())
    simple, _, emt = stored["found"]  # the second: fitted to the data alone
    assert emt["relative_error"] < 1e-3 < simple["relative_error"]
    assert emt["scale"] == pytest.approx(1, abs=1e-3)
    assert stored["unit"] == "eV/A"
    assert len(stored["data"]["hash"]) == 12
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_potential_of_another_kind_is_said_to_be_no_use(demo_data, capsys):
    unlike = "ase.calculators.lj:LennardJones(sigma=1.0, rc=2.0)"
    words = ["data", "curvature", str(demo_data / "train"), "--pairs", "4", "--calculator"]
    assert main([*words, unlike]) == 0  # with so few pairs nothing is fitted
    said = capsys.readouterr().out
    assert "That is too much for second views: above 50% they are refused." in said
    assert "ndem data second-views" not in said


def test_without_a_calculator_what_is_fitted_to_the_data_alone_is_shown(demo_data, capsys):
    assert main(["data", "curvature", str(demo_data / "train"), "--pairs", "20"]) == 0
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if line.startswith("fitted to the data alone"))
    assert float(row.split()[6]) < 0.5
    assert "--calculator data --out views.lmdb" in said


def test_a_model_that_knows_more_than_the_labels_is_told(demo_data, monkeypatch, capsys):
    """The truth stands in for the model of the checkpoint."""
    monkeypatch.setattr("fairchem_kit.inference.calculator", lambda file, unsafe: EMT())
    words = ["data", "curvature", str(demo_data / "train"), "--pairs", "20", "--checkpoint"]
    assert main([*words, __file__]) == 0  # labels: an energy fitted to the data alone
    said = capsys.readouterr().out
    assert "The model's own error is 0.0%, below that of such labels: expect less" in said


def test_what_cannot_be_compared_is_one_sentence(demo_data, tmp_path, capsys):
    base = ["data", "curvature", str(demo_data / "train")]
    for words, said in (
        (["data", "curvature", str(tmp_path)], "no *.lmdb or *.aselmdb files"),
        ([*base, "--displacement", "5", "6"], "no two frames of one system are 5 to 6 A"),
        ([*base, "--json", str(tmp_path / "no/x.json")], "its folder does not exist"),
        ([*base, "--calculator", "nonsense"], "write MODULE:CALCULATOR"),
    ):
        assert main(words) == 2
        assert said in capsys.readouterr().err


def test_eval_has_the_error_of_the_curvature(demo_data, tmp_path, capsys):
    checkpoint = short_training(demo_data, tmp_path) / "best_checkpoint.pt"
    out = tmp_path / "eval"
    words = ["eval", str(checkpoint), "--data", str(demo_data / "train"), "--cpu", "--curvature"]
    assert main([*words, "--out", str(out)]) == 0
    assert "curvature error (%)" in capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text())["splits"]["train"]["metrics"]
    assert 0.1 < metrics["force_change_error"] < 10
    # the same as the other command finds for the checkpoint
    found = tmp_path / "found.json"
    words = ["data", "curvature", str(demo_data / "train"), "--pairs", "200", "--json", str(found)]
    assert main([*words, "--checkpoint", str(checkpoint)]) == 0
    said = capsys.readouterr().out
    assert "above that of such labels: second views can help. It can label second" in said
    other = json.loads(found.read_text())["found"][-1]
    assert metrics["force_change_error"] == pytest.approx(other["unscaled_error"], rel=1e-2)
    assert metrics["force_change_pairs"] == other["pairs"]


# --- where a potential lives -------------------------------------------------------------------

WITHOUT_TORCH = """
import sys
for name in ("torch", "torch_geometric", "fairchem", "matplotlib", "pandas"):
    sys.modules[name] = None  # as if it were not installed
from ndem_ocp.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_views_are_made_without_torch_and_fairchem(demo_data, tmp_path):
    """In a potential's own environment this package may be alone with ASE, NumPy and lmdb."""
    out = tmp_path / "views.lmdb"
    words = ["data", "second-views", demo_data / "train", "--calculator", EXACT, "--out", out,
             "--draws", "1", "--pairs", "5", "--no-progress"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *map(str, words)],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 second view of 40 records" in done.stdout


def test_a_potential_names_the_record_it_fails_on(demo_data):
    structure = next(iter_structures(demo_data / "train"))
    wrong = Structure(**{**vars(structure), "numbers": np.full(len(structure.numbers), 92)})
    from fairchem_kit.data.errors import DataError

    with pytest.raises(DataError, match=r"record 0 \(U\d+\): the calculator fails"):
        Potential(EMT())(wrong)
