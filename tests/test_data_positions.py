"""Coordinates that float32 cannot hold are brought near before they are rounded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from fairchem_kit.data.check import check_dataset
from fairchem_kit.data.frames import LabelOptions
from fairchem_kit.data.positions import near_cell, near_origin
from fairchem_kit.data.relaxation_files import read_relaxations, to_record
from fairchem_kit.data.sources.ase import expand_sources
from test_data_support import make_frames, record, records, run, write_split

CELL = np.array([[6.0, 0.0, 0.0], [2.0, 7.0, 0.0], [0.0, 1.0, 8.0]])


def labelled(atoms: Atoms) -> Atoms:
    results = {"energy": -1.0, "forces": np.zeros((len(atoms), 3))}
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


@pytest.mark.parametrize("cells", [(12_345, 0, 0), (-1e5, 3e4, 0), (0, 0, 1e7)])
@pytest.mark.parametrize("everyone", [True, False])
def test_atoms_far_outside_of_a_periodic_cell(tmp_path, cells, everyone):
    positions = np.array([[0.5, 0.5, 0.5], [0.5, 0.5, 2.25]])
    shift = np.array(cells) @ CELL
    moved = positions + (shift if everyone else [[0, 0, 0], shift])
    write(tmp_path / "a.traj", labelled(Atoms("Cu2", positions=moved, cell=CELL, pbc=True)))
    run([tmp_path / "a.traj"], tmp_path / "out")
    pos = records(tmp_path / "out/train")[0]["pos"].double().numpy()
    assert np.abs(pos).max() < 20
    cells = np.round((pos[1] - pos[0]) @ np.linalg.inv(CELL) - (0, 0, 1.75 / 8))
    bond = np.linalg.norm(pos[1] - pos[0] - cells @ CELL)
    assert bond == pytest.approx(1.75, abs=1e-6)


def test_usual_positions_stay_as_they_are(tmp_path):
    frames = make_frames(count=2)
    frames[0].positions[0] -= 0.9 * frames[0].cell[0]
    frames[0].positions[8] += 0.9 * frames[0].cell[1]
    frames = [labelled(frame) for frame in frames]
    write(tmp_path / "a.traj", frames)
    run([tmp_path / "a.traj"], tmp_path / "out")
    for fields, frame in zip(records(tmp_path / "out/train"), frames):
        assert np.array_equal(fields["pos"], frame.positions.astype(np.float32))


@pytest.mark.parametrize("pbc", [False, (True, True, False)])
def test_a_structure_that_is_far_away_as_a_whole(tmp_path, pbc):
    water = molecule("H2O", cell=[9.0, 9.0, 9.0], pbc=pbc)
    frames = [water.copy() for _ in range(2)]
    for number, frame in enumerate(frames):
        frame.positions += [0.0, 0.0, 1e6 + 0.01 * number]
    write(tmp_path / "a.traj", [labelled(frame) for frame in frames])
    run([tmp_path / "a.traj"], tmp_path / "out")
    first, second = (r["pos"].double().numpy() for r in records(tmp_path / "out/train"))
    assert np.linalg.norm(first[1] - first[0]) == pytest.approx(water.get_distance(0, 1), abs=1e-5)
    # the frames are moved alike: their difference is still how the atoms moved
    np.testing.assert_allclose(second - first, np.full((3, 3), (0, 0, 0.01)), atol=1e-4)


def test_lattice_shifts_keep_the_structure():
    rng = np.random.default_rng(0)
    positions = rng.random((20, 3)) @ CELL + rng.integers(-1000, 1000, (20, 3)) @ CELL
    moved = near_cell(positions, CELL, np.ones(3, dtype=bool))
    cells = (moved - positions) @ np.linalg.inv(CELL)
    np.testing.assert_allclose(cells, np.round(cells), atol=1e-7)
    assert near_cell(moved, CELL, np.ones(3, dtype=bool)) is moved
    one = near_cell(positions, CELL, np.array([True, False, False]))
    cells = (one - positions) @ np.linalg.inv(CELL)
    np.testing.assert_allclose(cells[:, 1:], 0, atol=1e-9)
    assert near_origin(moved, CELL, np.ones(3, dtype=bool)) is moved


def test_both_ends_of_a_relaxation_are_moved_alike(tmp_path):
    start = Atoms("Cu2", positions=[[0.5, 0.5, 0.5], [0.5, 0.5, 2.5]], cell=CELL, pbc=True)
    start.positions += 1e6 * CELL[0]
    end = start.copy()
    end.positions[1, 2] -= 0.25
    write(tmp_path / "a.traj", [labelled(start), labelled(end)])
    (found,), _ = read_relaxations(*expand_sources([str(tmp_path / "a.traj")]), LabelOptions())
    made = to_record(found, 0, 0.0).data()
    moved = (made.pos_relaxed - made.pos).numpy()
    np.testing.assert_allclose(moved, [[0, 0, 0], [0, 0, -0.25]], atol=1e-5)


def test_check_names_coordinates_that_were_rounded(tmp_path):
    far = torch.tensor([[1e6, 0.0, 0.0], [1e6, 0.0, 2.0]])
    (report,) = check_dataset(
        write_split(tmp_path / "train", record(pos=far)), progress=False, isolate=False
    )
    (finding,) = (f for f in report.findings if f.kind == "far")
    assert (
        "coordinates of up to 1e+06 A, where the resolution of float32 is 0.06 A" in finding.message
    )
