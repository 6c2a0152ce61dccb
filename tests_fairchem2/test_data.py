"""Data sets for fairchem 2: written from the sources of S2EF LMDBs, read by both."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import fcc111
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write
from fairchem.core.datasets.ase_datasets import AseDBDataset

from fairchem_kit.data.records import iter_structures
from ndem_ocp.cli import main


def frames(count: int = 6) -> list[Atoms]:
    """Slabs with EMT's labels, some of whose atoms lie outside of the cell."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        atoms = fcc111("Cu", (2, 2, 2), vacuum=6.0, periodic=True)
        atoms.positions += random.normal(scale=0.05, size=(8, 3)) - [0.4, 0.0, 0.0]
        atoms.set_constraint(FixAtoms([0, 1]))
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        found.append(atoms)
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """One source in both formats."""
    folder = tmp_path_factory.mktemp("both")
    write(folder / "slab.traj", frames())
    for form in ("lmdb", "aselmdb"):
        words = ["--format", form, "--out", str(folder / form), "--no-progress"]
        assert main(["data", "ase", str(folder / "slab.traj"), "--split", "train", *words]) == 0
    return folder


def test_fairchem_reads_what_is_written(both):
    data = AseDBDataset({"src": str(both / "aselmdb/train"), "a2g_args": {"r_forces": True}})
    assert len(data) == 6
    for number, atoms in enumerate(frames()):
        read = data.get_atoms(number)
        assert np.allclose(read.positions, atoms.positions)
        assert read.get_potential_energy() == atoms.get_potential_energy()
        shown = data[number]
        assert shown.energy.item() == pytest.approx(atoms.get_potential_energy(), rel=1e-6)
        assert np.allclose(shown.forces, atoms.get_forces(apply_constraint=False), atol=1e-6)
        assert shown.fixed.tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
        assert shown.sid == [f"0-frame-{number}"]
    assert (
        data.get_metadata("natoms", list(range(6))) == [[8] * 6]
        or list(np.ravel(data.get_metadata("natoms", list(range(6))))) == [8] * 6
    )


def test_records_are_those_of_the_s2ef_files(both):
    pairs = zip(
        iter_structures(both / "lmdb/train"), iter_structures(both / "aselmdb/train"), strict=True
    )
    for s2ef, row in pairs:
        for name in ("numbers", "positions", "cell", "pbc", "free"):
            assert np.array_equal(getattr(s2ef, name), getattr(row, name)), name
        assert np.allclose(s2ef.forces, row.forces, atol=1e-6)
        assert s2ef.energy == row.energy
        assert s2ef.sid == row.sid


def test_the_check_says_the_same_of_both(both, capsys):
    said = {}
    for form in ("lmdb", "aselmdb"):
        report = both / f"{form}.json"
        main(["data", "check", str(both / form), "--no-progress", "--json", str(report)])
        said[form] = json.loads(report.read_text())
        for split in said[form]["splits"]:
            split.pop("path", None)
    assert said["lmdb"]["splits"][0]["statistics"] == said["aselmdb"]["splits"][0]["statistics"]
    assert "fairchem2.yaml has what fairchem 2 needs to know" in capsys.readouterr().out


def test_data_of_fairchems_own_scripts_is_checked_too(both, tmp_path, capsys):
    """It has stress, and neither our names of structures nor our file of settings."""
    from fairchem.core.scripts.create_finetune_dataset import launch_processing

    source = tmp_path / "source"
    source.mkdir()
    labelled = frames(2)
    for atoms in labelled:
        atoms.calc.results["stress"] = np.zeros(6)
    write(source / "slab.traj", labelled)
    launch_processing(source, tmp_path / "set/train", 1)
    assert main(["data", "check", str(tmp_path / "set"), "--no-progress"]) == 0
    said = capsys.readouterr().out
    assert "frames            2 of 2 systems" in said
    assert "fairchem2.yaml" not in said


def test_settings_have_references_and_normalizer(both):
    settings = yaml.safe_load((both / "aselmdb/fairchem2.yaml").read_text())
    energies = [atoms.get_potential_energy() for atoms in frames()]
    assert 8 * settings["elem_refs"][29] == pytest.approx(np.mean(energies), abs=1e-4)
    assert len(settings["elem_refs"]) == 100
    forces = np.concatenate([a.get_forces(apply_constraint=False)[2:] for a in frames()])
    assert settings["normalizer_rmsd"] == pytest.approx(np.sqrt((forces**2).mean()), rel=1e-5)
    assert settings["train_src"] == str(both / "aselmdb/train")


def test_equal_sources_are_equal_bytes(both, tmp_path):
    words = ["--format", "aselmdb", "--out", str(tmp_path / "again"), "--no-progress"]
    main(["data", "ase", str(both / "slab.traj"), "--split", "train", *words])
    name = "train/data.0000.aselmdb"
    assert (tmp_path / "again" / name).read_bytes() == (both / "aselmdb" / name).read_bytes()


def test_a_damaged_file_is_named(both, tmp_path, capsys):
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    content = (both / "aselmdb/train/data.0000.aselmdb").read_bytes()
    (folder / "data.0000.aselmdb").write_bytes(content[: len(content) // 2])
    assert main(["data", "check", str(tmp_path / "set"), "--no-progress"]) == 1
    assert "truncated" in capsys.readouterr().out


def test_formats_are_not_mixed(both, tmp_path, capsys):
    words = ["data", "ase", str(both / "slab.traj"), "--split", "val", "--no-progress"]
    assert main([*words, "--out", str(both / "aselmdb"), "--format", "lmdb"]) == 2
    assert "give another --out" in capsys.readouterr().err
