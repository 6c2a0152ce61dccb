"""Conversion of ASE files to S2EF LMDBs, read back with stock fairchem where that matters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, fcc100, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixedPlane
from ase.db import connect
from ase.io import write

from ndem_ocp.data import cli
from ndem_ocp.data.convert import convert
from ndem_ocp.data.errors import DataError
from ndem_ocp.data.frames import LabelOptions, derive_tags
from ndem_ocp.data.plan import ConvertOptions
from ndem_ocp.data.reference import fit_linear, last_frame_reference, load_linear
from ndem_ocp.data.shards import iter_records, open_shard, record_count, shard_paths
from ndem_ocp.data.sources import expand_sources
from ndem_ocp.data.split import assign_sids, split_units


def make_frames(metal="Cu", count=5, seed=0, adsorbate="O") -> list[Atoms]:
    """Slabs with random positions, energies and forces; the lower layer fixed, tags all 0."""
    rng = np.random.default_rng(seed)
    slab = fcc100(metal, (2, 2, 2), vacuum=6.0)
    add_adsorbate(slab, adsorbate, 1.5)
    slab.set_constraint(FixAtoms(mask=slab.get_tags() == 2))
    slab.set_tags(0)
    slab.pbc = True
    slab.info.clear()
    frames = []
    for _ in range(count):
        frame = slab.copy()
        frame.positions += rng.normal(0, 0.05, frame.positions.shape)
        results = {"energy": float(rng.normal(-30, 1)), "forces": rng.normal(0, 1, (len(slab), 3))}
        frame.calc = SinglePointCalculator(frame, **results)
        frames.append(frame)
    return frames


def run(sources, out, *, assign=None, workers=1, **options):
    found = expand_sources([str(s) for s in sources])
    return convert(
        found, out, ConvertOptions(**options), assign=assign, workers=workers, progress=False
    )


def records(split: Path) -> list[dict]:
    result = []
    for path in shard_paths(split):
        with open_shard(path) as env:
            result += [fields for _, fields in iter_records(env, 0, record_count(env))]
    return result


@pytest.fixture
def trajectories(tmp_path) -> list[Path]:
    paths = []
    for number, metal in enumerate(["Cu", "Ag", "Pd", "Pt"]):
        path = tmp_path / f"system{number}.traj"
        write(path, make_frames(metal, seed=number))
        paths.append(path)
    return paths


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


@pytest.mark.parametrize("what", ["nothing.traj", "*.db", "empty"])
def test_sources_that_do_not_exist(tmp_path, what):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no such file or directory"):
        expand_sources([str(tmp_path / what)])


def test_unknown_suffix(tmp_path):
    (tmp_path / "OUTCAR").write_text("")
    with pytest.raises(DataError, match=r"OUTCAR.*ase convert"):
        expand_sources([str(tmp_path / "OUTCAR")])


def test_tags_of_slabs_molecules_and_oxides():
    numbers, fixed = np.array([29, 8, 29, 8, 8, 1]), np.array([1, 1, 0, 0, 0, 0])
    assert derive_tags(numbers, fixed, True).tolist() == [0, 0, 1, 2, 2, 2]
    assert derive_tags(np.array([29, 29]), np.array([0, 0]), True).tolist() == [1, 1]
    assert derive_tags(np.array([29, 8, 8]), np.array([0, 1, 0]), True).tolist() == [1, 0, 2]
    assert derive_tags(np.array([8, 1, 1]), np.array([0, 0, 1]), False).tolist() == [2, 2, 0]
    assert derive_tags(np.array([8, 1, 1]), np.array([0, 0, 0]), True).tolist() == [1, 1, 1]


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


def test_split_by_system(tmp_path, trajectories):
    entry = run(trajectories, tmp_path / "out", val_fraction=0.25, test_fraction=0.25, seed=3)
    assert {k: v["systems"] for k, v in entry["splits"].items()} == {
        "train": 2,
        "val": 1,
        "test": 1,
    }
    sids = [{r["sid"] for r in records(tmp_path / "out" / s)} for s in ("train", "val", "test")]
    assert sum(len(part) for part in sids) == len(set.union(*sids)) == 4
    systems = json.loads((tmp_path / "out" / "systems.json").read_text())
    assert set.union(*sids) == {entry["sid"] for entry in systems.values()}


def test_split_by_frame_and_bad_fractions():
    split = split_units(np.arange(100), 0.1, 0.2, seed=0)
    assert [(split == name).sum() for name in ("train", "val", "test")] == [70, 10, 20]
    assert (split == split_units(np.arange(100), 0.1, 0.2, seed=0)).all()
    assert (split != split_units(np.arange(100), 0.1, 0.2, seed=1)).any()
    with pytest.raises(DataError, match="none is left for training"):
        split_units(np.zeros(10, int), 0.1, 0.0, seed=0)
    with pytest.raises(DataError, match="sum to less than 1"):
        split_units(np.arange(9), 0.6, 0.5, seed=0)


def test_sids_keep_oc20_numbers_and_known_systems():
    sids = assign_sids(["random12", "b", "x/random12", "random0"], {"b": {"sid": 5}})
    assert sids == {"random12": 12, "b": 5, "x/random12": 1, "random0": 0}


def test_one_split_after_the_other_into_one_directory(tmp_path, trajectories):
    out = tmp_path / "out"
    run(trajectories[:3], out, split="train", energy_reference="linear")
    with pytest.raises(DataError, match="fitted on the training split"):
        run(trajectories[:1], out, split="val", energy_reference="linear")
    run(trajectories[2:3], out, split="val", energy_reference=str(out / "linear_reference.npz"))
    with pytest.raises(DataError, match="--overwrite"):
        run(trajectories[:1], out, split="val")
    dataset = json.loads((out / "dataset.json").read_text())
    assert [list(c["splits"]) for c in dataset["conversions"]] == [["train"], ["val"]]
    assert records(out / "val")[0]["sid"] == 2
    run(trajectories[3:], out, split="val", overwrite=True)
    assert records(out / "val")[0]["sid"] == 3
    assert sorted(p.name for p in out.iterdir()) == [
        "dataset.json",
        "linear_reference.npz",
        "systems.json",
        "train",
        "val",
    ]


def test_last_frame_reference(tmp_path, trajectories):
    run(trajectories[:2], tmp_path / "out", energy_reference="last-frame")
    energies = np.array([r["y"] for r in records(tmp_path / "out/train")]).reshape(2, 5)
    assert energies[:, -1].tolist() == [0.0, 0.0]
    raw = [f.calc.results["energy"] for f in make_frames("Ag", seed=1)]
    np.testing.assert_allclose(energies[1], np.array(raw) - raw[-1])
    reference = last_frame_reference(np.array([1, 0, 1]), np.array([1.0, 2.0, 3.0]))
    assert reference.tolist() == [3.0, 2.0, 3.0]


def test_linear_fit_is_the_least_squares_solution():
    rng = np.random.default_rng(0)
    compositions = [((1, 2), (8, 1)), ((1, 1), (8, 3)), ((8, 2),)]
    index = rng.integers(0, 3, 50)
    counts = np.array([[2, 1], [1, 3], [0, 2]])[index]
    energy = counts @ np.array([-1.5, -4.0]) + rng.normal(0, 0.1, 50)
    coefficients, seen = fit_linear(compositions, index, energy)
    expected = np.linalg.lstsq(counts, energy, rcond=None)[0]
    np.testing.assert_allclose(coefficients[[1, 8]], expected)
    assert np.flatnonzero(seen).tolist() == [1, 8]


def test_linear_reference_is_fitted_on_train_only_and_reads_back(tmp_path, trajectories):
    paths = [trajectories[0]]
    for number in range(3):
        path = tmp_path / f"cu{number}.traj"
        write(path, make_frames("Cu", seed=10 + number))
        paths.append(path)
    out = tmp_path / "out"
    run(paths, out, energy_reference="linear", val_fraction=0.25)
    train = [r["y"] for r in records(out / "train")]
    assert np.mean(train) == pytest.approx(0, abs=1e-8)
    assert abs(np.mean([r["y"] for r in records(out / "val")])) > 1e-3
    coefficients, seen = load_linear(out / "linear_reference.npz")
    assert np.flatnonzero(seen).tolist() == [8, 29]
    systems = json.loads((out / "systems.json").read_text())
    for entry in systems.values():
        total = 8 * coefficients[29] + coefficients[8]
        assert entry["reference_energy_eV"] == pytest.approx(total)


def test_linear_reference_does_not_cover_an_element(tmp_path, trajectories):
    with pytest.raises(DataError, match=r"no coefficient for .*last-frame"):
        run(trajectories, tmp_path / "out", energy_reference="linear", val_fraction=0.25)
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="cannot be read as npz"):
        run(trajectories, tmp_path / "out", energy_reference=str(tmp_path / "no.npz"))


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
        return "frame 1: NaN or infinite forces on 1 atoms, the first is atom 3"
    frames[1].cell[2] = 0
    frames[1].calc = SinglePointCalculator(frames[1], **frames[0].calc.results)
    return "frame 1: periodic along a lattice vector of length 0"


@pytest.mark.parametrize("kind", ["unlabelled", "no forces", "nan energy", "nan forces", "cell"])
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


def test_workers_give_the_same_records(tmp_path, trajectories):
    for workers in (1, 2):
        run(trajectories, tmp_path / str(workers), frames_per_shard=6, workers=workers)
    first, second = (records(tmp_path / str(w) / "train") for w in (1, 2))
    assert len(first) == len(second) == 20
    for a, b in zip(first, second):
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[key], b[key]) for key in a)


def test_targets_are_not_lost(tmp_path, trajectories):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="was not written by this command"):
            run(trajectories[:1], out, overwrite=overwrite)
    assert (out / "mine.txt").read_text() == "keep"
    (out / "mine.txt").unlink()
    run(trajectories[:1], out)
    with pytest.raises(DataError, match="already holds a data set"):
        run(trajectories[1:2], out)
    run(trajectories[1:2], out, overwrite=True)
    assert json.loads((out / "systems.json").read_text()).keys() == {"system1"}
    assert not [p for p in tmp_path.iterdir() if "partial" in p.name or "replaced" in p.name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "val", "val_fraction": 0.1}, "leave out the fractions"),
        ({"split": "a/b"}, "letters, digits"),
        ({"max_force": -1}, "above 0"),
        ({"frames_per_shard": 0}, "at least 1"),
        ({"max_force": 1e-9}, "are above --max-force"),
    ],
)
def test_bad_options(tmp_path, trajectories, options, message):
    with pytest.raises(DataError, match=message):
        run(trajectories[:1], tmp_path / "out", **options)


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 2), (signal.SIGTERM, 1)])
def test_interrupted_conversion_leaves_nothing(tmp_path, number, workers):
    frames = make_frames(count=40)
    write(tmp_path / "a.traj", frames)
    code = f"""
import os, sys, time, types
sys.modules["ndem_ocp"] = package = types.ModuleType("ndem_ocp")  # without fairchem: fast
package.__path__ = [{str(Path(cli.__file__).parents[1])!r}]
import ndem_ocp.data.shards as shards
plain = shards.read_frame
def slow(*args):
    os.write(1, b"writing\\n")
    time.sleep(0.2)
    return plain(*args)
shards.read_frame = slow
from ndem_ocp.data.cli import main
sys.exit(main(["ase", {str(tmp_path / "a.traj")!r}, "--out", {str(tmp_path / "out")!r},
               "--workers", "{workers}", "--frames-per-shard", "10", "--no-progress"]))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    start = time.monotonic()
    os.kill(process.pid, number)
    assert process.wait(timeout=60) == 130
    process.stdout.close()
    assert time.monotonic() - start < 30
    assert [p.name for p in tmp_path.iterdir()] == ["a.traj"]


def test_command_line(tmp_path, trajectories, capsys):
    out = str(tmp_path / "out")
    arguments = ["ase", str(trajectories[0]), "--out", out, "--no-progress", "--workers", "1"]
    assert cli.main(arguments) == 0
    assert "5 frames of 1 systems" in capsys.readouterr().out
    assert cli.main(arguments) == 2
    assert "error: " in capsys.readouterr().err
    assert cli.main([*arguments[:-1], "0"]) == 2
