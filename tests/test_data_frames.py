"""Frames with invalid labels, elements or tags."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, fcc111
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db import connect
from ase.io import write

from fairchem_kit.data.check import check_dataset
from fairchem_kit.data.errors import DataError, FrameError
from fairchem_kit.data.frames import LabelOptions, read_frame
from fairchem_kit.data.report import print_conversion
from fairchem_kit.data.tags import are_layers
from test_data_support import make_frames, record, records, run, write_split


def with_energy(path: Path, text: str, key: str = "energy") -> Path:
    """Three frames as extxyz; the energy of the second is ``text``."""
    frames = make_frames(count=3)
    write(path, frames)
    lines = path.read_text().splitlines()
    for number, frame in enumerate(frames):
        head = number * (len(frame) + 2) + 1
        old = next(w for w in lines[head].split() if w.startswith("energy="))
        lines[head] = lines[head].replace(old, f"{key}={text if number == 1 else '-1.5e2'}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("key", ["energy", "REF_energy"])
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("None", "'None'"),
        ('"-1.0 eV"', "'-1.0 eV'"),
        ('"1.0 2.0"', "a list of 2 values"),
        ('"[1.0]"', ""),
        ("-1,5", ""),
        ("-1.5D+02", "'-1.5D[+]02'"),
        ('""', ""),
        ("T", "True"),
        ("1e39", ""),
    ],
)
def test_energies_that_are_not_numbers_are_named_and_skippable(tmp_path, key, text, shown):
    path = with_energy(tmp_path / "a.extxyz", text, key)
    labels = LabelOptions(None if key == "energy" else key)
    with pytest.raises(DataError, match=rf"a\.extxyz: frame 1: the energy is {shown}"):
        run([path], tmp_path / "out", labels=labels)
    entry = run([path], tmp_path / "out", labels=labels, skip_bad=True)
    assert [b["frame"] for b in entry["dropped"]["bad"]] == [1]
    assert [r["y"] for r in records(tmp_path / "out/train")] == [-150.0, -150.0]


@pytest.mark.parametrize(
    ("forces", "message"),
    [
        (np.zeros((9, 2)), r"forces of shape \(9, 2\) for 9 atoms"),
        (np.zeros(9), r"forces of shape \(9,\)"),
        (np.full((9, 3), "a"), "not numbers in eV/A, the first is 'a'"),
        (np.full((9, 3), True), "not numbers in eV/A, the first is True"),
        (np.full((9, 3), 1e39), "infinite forces on 9 of 9 atoms"),
    ],
)
def test_forces_that_are_not_numbers_are_named(forces, message):
    (frame,) = make_frames(count=1)
    frame.info["dft"] = forces
    with pytest.raises(FrameError, match=message):
        read_frame(frame, LabelOptions(None, "dft"))


@pytest.mark.parametrize(
    ("old", "new"),
    [("dft:R:3", "dft:R:2"), ("dft:R:3", "dft:S:3"), (" 7.0", " NaN"), (" 7.0", " 7.0D+00")],
)
def test_bad_forces_in_a_file_are_named_and_skippable(tmp_path, old, new):
    frames = make_frames(count=3)
    for frame in frames:
        frame.arrays["dft"] = np.full((9, 3), 7.0)
    write(tmp_path / "a.extxyz", frames)
    lines = (tmp_path / "a.extxyz").read_text().splitlines()
    lines[11:22] = [line.replace("7.00000000", "7.0").replace(old, new) for line in lines[11:22]]
    (tmp_path / "a.extxyz").write_text("\n".join(lines) + "\n")
    labels = LabelOptions(None, "dft")
    with pytest.raises(DataError, match=r"a\.extxyz: frame 1: "):
        run([tmp_path / "a.extxyz"], tmp_path / "out", labels=labels)
    run([tmp_path / "a.extxyz"], tmp_path / "out", labels=labels, skip_bad=True)
    assert [r["fid"] for r in records(tmp_path / "out/train")] == [0, 2]


def test_labels_under_other_names_in_every_kind_of_source(tmp_path):
    frames = make_frames(count=2)
    for number, frame in enumerate(frames):
        frame.calc = None
        frame.info["dft_energy"] = number - 1.5
        frame.arrays["dft_forces"] = np.full((9, 3), float(number))
    write(tmp_path / "b.extxyz", frames)
    for name in ("c.db", "d.json"):
        with connect(str(tmp_path / name)) as database:
            for frame in frames:
                values = {"dft_forces": frame.arrays["dft_forces"]}
                database.write(frame, dft_energy=frame.info["dft_energy"], data=values)
    for name in ("b.extxyz", "c.db", "d.json"):
        labels = LabelOptions("dft_energy", "dft_forces")
        run([tmp_path / name], tmp_path / f"out-{name}", labels=labels)
        found = records(tmp_path / f"out-{name}/train")
        assert [r["y"] for r in found] == [-1.5, -0.5]
        assert [float(r["force"][8, 2]) for r in found] == [0.0, 1.0]


@pytest.mark.parametrize(("number", "shown"), [(0, "0 .X, a ghost atom"), (119, "119")])
def test_atoms_with_an_unknown_element_are_named_and_skippable(tmp_path, number, shown):
    frames = make_frames(count=2)
    results = frames[1].calc.results
    frames[1].numbers[4] = number
    frames[1].calc = SinglePointCalculator(frames[1], **results)
    write(tmp_path / "a.traj", frames)
    with pytest.raises(DataError, match=rf"a\.traj: frame 1: atom 4 has atomic number {shown}"):
        run([tmp_path / "a.traj"], tmp_path / "out")
    run([tmp_path / "a.traj"], tmp_path / "out", skip_bad=True)
    assert [r["fid"] for r in records(tmp_path / "out/train")] == [0]


def layered(layers: int, adsorbate: str | None = "O", fix: bool = True) -> Atoms:
    """A slab with ASE's own tags: 1, 2, ... from the top, 0 for the adsorbate."""
    slab = fcc111("Cu", (2, 2, layers), vacuum=7.0)
    if adsorbate:
        add_adsorbate(slab, adsorbate, 1.3)
    if fix:
        slab.set_constraint(FixAtoms(mask=slab.get_tags() >= 2))
    slab.pbc = True
    slab.info.clear()
    rng = np.random.default_rng(0)
    results = {"energy": -1.0, "forces": rng.normal(0, 0.1, (len(slab), 3))}
    slab.calc = SinglePointCalculator(slab, **results)
    return slab


@pytest.mark.parametrize(
    ("atoms", "tags"),
    [
        (layered(2), [0] * 4 + [1] * 4 + [2]),
        (layered(3), [0] * 8 + [1] * 4 + [2]),
        (layered(3, "S"), [0] * 8 + [1] * 4 + [2]),
        (layered(2, fix=False), [1] * 8 + [2]),
        (layered(1), [1] * 4 + [2]),
        (layered(4, None, fix=False), [1] * 16),
        (layered(2, None, fix=False), [1] * 8),
    ],
)
def test_ase_layers_are_not_taken_for_ocs_tags(tmp_path, capsys, atoms, tags):
    write(tmp_path / "a.traj", [atoms])
    entry = run([tmp_path / "a.traj"], tmp_path / "out")
    assert records(tmp_path / "out/train")[0]["tags"].tolist() == tags
    ((what, number),) = entry["tags_of_another_convention"].items()
    assert "layers from the top as in ASE" in what
    assert number == 1
    print_conversion(tmp_path / "out", entry)
    assert f"the tags of 1 frame are {what}, and not OC20's" in capsys.readouterr().err


def test_tags_of_ocs_kind_are_kept():
    slab = layered(2)
    fixed = (slab.get_tags() == 2).astype(int)
    ours = np.array([0] * 4 + [1] * 4 + [2])

    def seen(atoms, tags, fixed):
        cell = atoms.cell[:]
        return are_layers(tags, atoms.numbers, fixed, atoms.positions, cell, atoms.pbc)

    assert seen(slab, slab.get_tags(), fixed)
    assert not seen(slab, ours, fixed)
    shifted = slab.copy()
    shifted.positions[:, 2] += 9.0  # through the cell's upper face
    shifted.wrap()
    assert seen(shifted, slab.get_tags(), fixed)
    assert not seen(shifted, ours, fixed)
    down = slab.copy()
    down.positions[:, 2] *= -1  # an adsorbate below
    assert not seen(down, ours, fixed)
    assert not seen(down, ours, np.zeros(9))
    places = np.random.default_rng(0).random((4, 3))
    bulk = Atoms("Cu4", cell=3.6 * np.eye(3), scaled_positions=places, pbc=True)
    assert not seen(bulk, np.array([2, 1, 0, 0]), np.zeros(4))


def test_keeping_tags_refuses_what_a_record_cannot_hold(tmp_path):
    write(tmp_path / "a.traj", [layered(3)])
    with pytest.raises(DataError, match=r"frame 0: its tags are 0 to 3.*leave out --tags keep"):
        run([tmp_path / "a.traj"], tmp_path / "out", labels=LabelOptions(tags="keep"))
    write(tmp_path / "b.traj", [layered(2)])
    entry = run([tmp_path / "b.traj"], tmp_path / "out", labels=LabelOptions(tags="keep"))
    assert list(entry["tags_of_another_convention"].values()) == [1]
    assert records(tmp_path / "out/train")[0]["tags"].tolist() == [2] * 4 + [1] * 4 + [0]
    (report,) = check_dataset(tmp_path / "out/train", progress=False, isolate=False)
    assert any("layers from the top" in str(f) for f in report.findings)


def test_check_is_silent_about_ocs_tags(tmp_path):
    split = write_split(tmp_path / "train", record())
    (report,) = check_dataset(split, progress=False, isolate=False)
    assert report.findings == []
