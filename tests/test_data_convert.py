"""Conversion of ASE files to S2EF LMDBs, read back with stock fairchem where that matters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixedPlane
from ase.db import connect
from ase.io import write

from fairchem_kit.data.errors import DataError
from fairchem_kit.data.frames import LabelOptions
from fairchem_kit.data.shards import open_shard, shard_paths
from fairchem_kit.data.sources.ase import expand_sources
from test_data_support import make_frames, records, run, trajectories

__all__ = ["trajectories"]  # a fixture


def test_records_hold_the_frames(tmp_path, trajectories):
    run(trajectories[:1], tmp_path / "out")
    frames = make_frames("Cu", seed=0)
    written = records(tmp_path / "out" / "train")
    assert len(written) == len(frames)
    for index, (fields, atoms) in enumerate(zip(written, frames)):
        assert fields["y"] == pytest.approx(atoms.calc.results["energy"])
        assert isinstance(fields["y"], float)
        np.testing.assert_allclose(fields["force"], atoms.calc.results["forces"], rtol=1e-6)
        np.testing.assert_allclose(fields["pos"], atoms.positions, rtol=1e-6)
        np.testing.assert_allclose(fields["cell"][0], atoms.cell[:], rtol=1e-6)
        assert fields["cell"].shape == (1, 3, 3)
        assert fields["pbc"].tolist() == [[True, True, True]]
        assert fields["atomic_numbers"].tolist() == atoms.numbers.tolist()
        assert (fields["natoms"], fields["sid"], fields["fid"]) == (len(atoms), 0, index)
        assert fields["fixed"].tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0]
        assert fields["tags"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2]


def test_records_hold_no_numpy_objects(tmp_path, trajectories):
    run(trajectories[:1], tmp_path / "out")
    with open_shard(tmp_path / "out/train/data.0000.lmdb") as env, env.begin() as transaction:
        for _, value in transaction.cursor():
            assert b"numpy" not in value


def test_stock_fairchem_reads_shards_and_metadata_in_the_same_order(tmp_path, trajectories):
    import ndem_ocp_standins

    ndem_ocp_standins.install()
    from fairchem.core.datasets import create_dataset, data_list_collater

    run(trajectories, tmp_path / "out", frames_per_shard=6)
    split = tmp_path / "out" / "train"
    assert [p.name for p in shard_paths(split)] == [f"data.{i:04d}.lmdb" for i in range(4)]
    config = {
        "format": "lmdb",
        "src": str(split),
        "key_mapping": {"y": "energy", "force": "forces"},
        "no_shuffle": True,
    }
    dataset = create_dataset(config, "train")
    assert len(dataset) == 20
    for index in range(20):
        for key in ("natoms", "sid", "fid"):
            assert dataset.get_metadata(key, index) == dataset[index][key]
    assert [dataset[i].sid for i in range(0, 20, 5)] == [0, 1, 2, 3]
    batch = data_list_collater([dataset[0], dataset[7]], otf_graph=True)
    assert batch.energy.shape == (2,)
    assert batch.forces.shape == (18, 3)
    assert batch.pbc.shape == (2, 3)
    assert batch.atomic_numbers.long().max() == 47


def test_extxyz_and_databases_give_the_same_records(tmp_path):
    frames = make_frames()
    write(tmp_path / "a.traj", frames)
    write(tmp_path / "b.extxyz", frames)
    with connect(tmp_path / "c.db") as database:
        for frame in frames:
            database.write(frame)
    expected = None
    for name in ("a.traj", "b.extxyz", "c.db"):
        run([tmp_path / name], tmp_path / f"out_{name}", frames_per_shard=2)
        written = records(tmp_path / f"out_{name}" / "train")
        expected = expected or written
        assert [w["fid"] for w in written] == list(range(5))
        for first, second in zip(expected, written):
            assert first["y"] == pytest.approx(second["y"], abs=1e-6)
            for key in ("pos", "force", "cell"):
                np.testing.assert_allclose(first[key], second[key], atol=1e-6)
            assert first["fixed"].tolist() == second["fixed"].tolist()


def test_directories_globs_and_doubles(tmp_path, trajectories):
    found = expand_sources([str(tmp_path), str(tmp_path / "*.traj"), str(trajectories[0])])
    assert [s.name for s in found] == ["system0", "system1", "system2", "system3"]
    (tmp_path / "more").mkdir()
    write(tmp_path / "more" / "system0.traj", make_frames("Au"))
    names = [s.name for s in expand_sources([str(tmp_path)])]
    assert "more/system0" in names
    assert len(set(names)) == 5


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("nothing.traj", "no such file or directory"),
        ("*.db", "no file matches"),
        ("empty", "nothing in this folder ends in .traj"),
    ],
)
def test_sources_that_do_not_exist(tmp_path, what, why):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=why):
        expand_sources([str(tmp_path / what)])


def test_unknown_suffix(tmp_path):
    (tmp_path / "OUTCAR").write_text("")
    with pytest.raises(DataError, match=r"OUTCAR.*ase convert"):
        expand_sources([str(tmp_path / "OUTCAR")])


def test_given_tags_are_kept(tmp_path):
    frames = make_frames(count=1)
    frames[0].set_tags([0, 0, 0, 0, 1, 1, 2, 2, 2])
    write(tmp_path / "a.traj", frames)
    run([tmp_path / "a.traj"], tmp_path / "out")
    assert records(tmp_path / "out/train")[0]["tags"].tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2]


def test_molecules_without_cell(tmp_path):
    water = molecule("H2O")
    water.calc = SinglePointCalculator(water, energy=-1.0, forces=np.zeros((3, 3)))
    write(tmp_path / "a.traj", [water])
    run([tmp_path / "a.traj"], tmp_path / "out")
    (fields,) = records(tmp_path / "out/train")
    assert fields["pbc"].tolist() == [[False] * 3]
    assert fields["tags"].tolist() == [2, 2, 2]
    assert fields["fixed"].tolist() == [0, 0, 0]


def test_other_constraints_are_reported(tmp_path):
    frames = make_frames(count=2)
    frames[1].set_constraint(FixedPlane([0], (0, 0, 1)))
    write(tmp_path / "a.traj", frames)
    entry = run([tmp_path / "a.traj"], tmp_path / "out")
    assert entry["constraints_not_stored"] == {"FixedPlane": 1}


def test_max_force_counts_free_atoms_only(tmp_path):
    frames = make_frames(count=4)
    frames[1].calc.results["forces"][0] = 100.0  # a fixed atom
    frames[2].calc.results["forces"][8] = 100.0  # a free one
    write(tmp_path / "a.traj", frames)
    entry = run([tmp_path / "a.traj"], tmp_path / "out", max_force=50)
    assert entry["dropped"]["above_max_force"] == 1
    assert list(entry["dropped"]["above_max_force_per_source"].values()) == [1]
    assert [r["fid"] for r in records(tmp_path / "out/train")] == [0, 1, 3]


def spoil(frames: list[Atoms], kind: str) -> str:
    """Spoil frame 1 and return a pattern of the message."""
    if kind == "unlabelled":
        frames[1].calc = None
        return r"frame 1: no energy.*--energy-key"
    if kind == "no forces":
        del frames[1].calc.results["forces"]
        return r"frame 1: no forces.*--forces-key"
    if kind == "nan energy":
        frames[1].calc.results["energy"] = np.nan
        return "frame 1: the energy is nan"
    if kind == "nan forces":
        frames[1].calc.results["forces"][3, 2] = np.nan
        return f"frame 1: NaN or infinite forces on 1 of {len(frames[1])} atoms, first on atom 3"
    if kind == "nan positions":
        frames[1].positions[4, 1] = np.nan
        return "frame 1: NaN or infinite positions"
    frames[1].cell[2] = 0
    frames[1].calc = SinglePointCalculator(frames[1], **frames[0].calc.results)
    return "frame 1: periodic along a lattice vector of length 0"


@pytest.mark.parametrize(
    "kind", ["unlabelled", "no forces", "nan energy", "nan forces", "nan positions", "cell"]
)
def test_bad_frames_are_named_or_skipped_and_listed(tmp_path, kind, capsys):
    frames = make_frames()
    pattern = spoil(frames, kind)
    write(tmp_path / "a.traj", frames)
    with pytest.raises(DataError, match=rf"(?s)a\.traj: {pattern}.*--skip-bad"):
        run([tmp_path / "a.traj"], tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.traj"]
    entry = run([tmp_path / "a.traj"], tmp_path / "out", skip_bad=True)
    assert [(b["frame"], Path(b["file"]).name) for b in entry["dropped"]["bad"]] == [(1, "a.traj")]
    assert [r["fid"] for r in records(tmp_path / "out/train")] == [0, 2, 3, 4]
    assert "skipped 1 unusable frame" in capsys.readouterr().err


def test_truncated_and_empty_files(tmp_path):
    write(tmp_path / "a.traj", make_frames())
    whole = (tmp_path / "a.traj").read_bytes()
    (tmp_path / "b.traj").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.extxyz").write_text("9\nbroken")
    (tmp_path / "d.traj").write_bytes(b"")
    for name in ("b.traj", "c.extxyz", "d.traj"):
        with pytest.raises(DataError, match=rf"{name}.*cannot be read"):
            run([tmp_path / name], tmp_path / "out")
    entry = run([tmp_path], tmp_path / "out", skip_bad=True)
    files = {Path(b["file"]).name for b in entry["dropped"]["bad"]}
    assert files == {"b.traj", "c.extxyz", "d.traj"}


def test_other_keys_for_labels_and_systems(tmp_path):
    frames = make_frames(count=4)
    for number, frame in enumerate(frames):
        frame.info["my_energy"] = float(number)
        frame.arrays["my_forces"] = np.full((9, 3), float(number))
        frame.info["run"] = "first" if number < 2 else "second"
        frame.calc = None
    write(tmp_path / "a.extxyz", frames)
    labels = LabelOptions("my_energy", "my_forces", "run")
    run([tmp_path / "a.extxyz"], tmp_path / "out", labels=labels)
    written = records(tmp_path / "out/train")
    assert [r["y"] for r in written] == [0, 1, 2, 3]
    assert [float(r["force"][0, 0]) for r in written] == [0, 1, 2, 3]
    assert [r["sid"] for r in written] == [0, 0, 1, 1]
    assert set(json.loads((tmp_path / "out/systems.json").read_text())) == {"first", "second"}


def test_a_file_with_several_formulas_has_several_systems(tmp_path):
    write(tmp_path / "a.traj", [*make_frames("Cu", 2), *make_frames("Ag", 2)])
    run([tmp_path / "a.traj"], tmp_path / "out")
    systems = json.loads((tmp_path / "out/systems.json").read_text())
    assert list(systems) == ["a:O1-Cu8", "a:O1-Ag8"]
