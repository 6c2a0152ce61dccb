"""What `ndem data is2re` takes for a relaxation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import write

import data_cli as cli
from test_data_support import make_frames, records


def relaxation(count: int = 4, seed: int = 0) -> list[Atoms]:
    """Frames of one slab whose free atoms move; the energy falls."""
    rng = np.random.default_rng(seed)
    (start,) = make_frames(count=1, seed=seed)
    frames = []
    for number in range(count):
        frame = start.copy()
        frame.positions[4:] += rng.normal(0, 0.05, (5, 3))
        results = {"energy": -1.0 - number, "forces": np.zeros((9, 3))}
        frame.calc = SinglePointCalculator(frame, **results)
        frames.append(frame)
    return frames


def again(atoms: Atoms, energy: float = -3.0) -> Atoms:
    """A changed frame with labels that belong to it."""
    results = {"energy": energy, "forces": np.zeros((len(atoms), 3))}
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def is2re(*arguments: object) -> int:
    return cli.main(["is2re", *map(str, arguments), "--no-progress"])


def spoil(frames: list[Atoms], kind: str) -> str:
    if kind == "cell":
        frames[-1].set_cell(frames[-1].cell[:] * 1.05, scale_atoms=True)
        again(frames[-1])
        return "frame 3: its cell is not that of the first frame (it differs by up to 0"
    if kind == "cell on the way":
        frames[1].set_cell(frames[1].cell[:] * 1.05)
        again(frames[1])
        return "frame 1: its cell is not that"
    if kind == "pbc":
        frames[2].pbc = (True, True, False)
        again(frames[2])
        return "frame 2: its cell is not that"
    if kind == "atoms on the way":
        frames[2].numbers[0] = 47
        again(frames[2])
        return "frame 2: it has different atoms (AgCu7O)"
    if kind == "fixed":
        frames[2].positions[1, 0] += 0.1
        again(frames[2])
        return "frame 2: fixed atom 1 is 0.1 A from where it was"
    frames[-1].calc.results["energy"] = np.nan
    return "frame 3, its last: the energy is nan"


@pytest.mark.parametrize(
    "kind", ["cell", "cell on the way", "pbc", "atoms on the way", "fixed", "nan"]
)
def test_files_that_are_not_relaxations_are_named_or_skipped_and_listed(tmp_path, capsys, kind):
    frames = relaxation()
    message = spoil(frames, kind)
    write(tmp_path / "a.traj", frames)
    write(tmp_path / "b.traj", relaxation())
    assert is2re(tmp_path / "a.traj", tmp_path / "b.traj", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert f"a.traj: {message}" in error
    assert "--skip-bad" in error
    assert not (tmp_path / "out").exists()
    sources = (tmp_path / "a.traj", tmp_path / "b.traj")
    assert is2re(*sources, "--out", tmp_path / "out", "--skip-bad") == 0
    assert len(records(tmp_path / "out")) == 1
    (left,) = json.loads((tmp_path / "out/dataset.json").read_text())["bad"]
    assert message in left
    assert "left out 1:" in capsys.readouterr().err


def test_a_fixed_atom_may_cross_the_cells_border(tmp_path):
    frames = relaxation()
    frames[2].positions[1] += frames[2].cell[0]
    again(frames[2])
    write(tmp_path / "a.traj", frames)
    assert is2re(tmp_path / "a.traj", "--out", tmp_path / "out") == 0


def test_rows_of_a_database_are_relaxations_where_a_key_says_so(tmp_path, capsys):
    with connect(str(tmp_path / "a.db")) as database:
        for step in zip(relaxation(seed=0), relaxation(seed=1)):
            for number, frame in enumerate(step):
                database.write(frame, run=f"run{number}")
    assert is2re(tmp_path / "a.db", "--out", tmp_path / "out") == 2
    assert "may belong to different relaxations" in capsys.readouterr().err
    assert is2re(tmp_path / "a.db", "--out", tmp_path / "out", "--system-key", "run") == 0
    made = records(tmp_path / "out")
    assert [(r["y_init"], r["y_relaxed"]) for r in made] == [(-1.0, -4.0)] * 2
    for fields, seed in zip(made, (0, 1)):
        expected = relaxation(seed=seed)[-1].positions
        np.testing.assert_allclose(fields["pos_relaxed"], expected, atol=1e-5)
    systems = json.loads((tmp_path / "out/systems.json").read_text())
    assert [s["source"].rsplit(": ")[-1] for s in systems.values()] == ["run0", "run1"]
    with connect(str(tmp_path / "a.db")) as database:
        database.write(relaxation(seed=2)[0], run="alone")
    arguments = (tmp_path / "a.db", "--out", tmp_path / "most", "--system-key", "run")
    assert is2re(*arguments) == 2
    assert "a.db: run alone: 1 frame;" in capsys.readouterr().err
    assert is2re(*arguments, "--skip-bad") == 0
    assert len(records(tmp_path / "most")) == 2
    assert is2re(tmp_path / "a.db", "--out", tmp_path / "o", "--system-key", "name") == 2
    assert "no 'name' (--system-key)" in capsys.readouterr().err


def test_an_energy_that_rises_gives_a_warning(tmp_path, capsys):
    write(tmp_path / "a.traj", relaxation()[::-1])
    assert is2re(tmp_path / "a.traj", "--out", tmp_path / "out") == 0
    assert "1 of them end more than 0.05 eV above their start" in capsys.readouterr().err
    assert json.loads((tmp_path / "out/systems.json").read_text())["0"]["rise_eV"] == 3.0
