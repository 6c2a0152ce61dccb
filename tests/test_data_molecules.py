"""MD17-like npz files -> S2EF LMDBs: records, splits, and the files next to them."""

from __future__ import annotations

import json
from pathlib import Path

import ase.units
import numpy as np
import pytest
import torch

from fairchem_kit.data.errors import DataError
from fairchem_kit.data.index_split import SplitOptions
from fairchem_kit.data.shards import open_shard
from fairchem_kit.data.sources.md17 import Md17
from test_data_support import records

KCAL = ase.units.kcal / ase.units.mol
NUMBERS = np.array([8, 1, 1], dtype=np.uint8)
SHAPE = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])


def arrays(layout="rMD17", frames=20, seed=0, **changes) -> dict[str, np.ndarray]:
    """The content of an npz file with frames of a water molecule; None removes a key."""
    rng = np.random.default_rng(seed)
    positions = SHAPE + rng.normal(0, 0.05, (frames, 3, 3))
    energies, old = rng.normal(-47_000, 5, (2, frames))
    forces, old_forces = rng.normal(0, 30, (2, frames, 3, 3))
    if layout == "rMD17":
        content = {
            "nuclear_charges": NUMBERS,
            "coords": positions,
            "energies": energies,
            "forces": forces,
            "old_indices": 100 * seed + np.arange(frames),
            "old_energies": old,
            "old_forces": old_forces,
        }
    else:  # MD17, CCSD(T)
        content = {"z": NUMBERS, "R": positions, "E": energies[:, None], "F": forces}
        content |= {"name": "water", "theory": "CCSD(T)", "r_unit": "Ang", "e_unit": "kcal/mol"}
        content |= {"type": "d", "md5": b"0123"}
    content |= changes
    return {key: value for key, value in content.items() if value is not None}


def save(path: Path, **content) -> Path:
    np.savez(path, **content)
    return path


def convert(files, out, *, workers=1, split=None, **options):
    files = [files] if isinstance(files, Path) else files
    chosen = SplitOptions(**{"train": 10, "val": 4, **(split or {})})
    if any(key.endswith(("indices", "splits")) for key in split or {}):
        chosen = SplitOptions(**split)
    settings = Md17(split=chosen, **options)
    return settings.convert(files, out, workers=workers, progress=False)


def fids(out: Path, split: str) -> list[int]:
    return [fields["fid"] for fields in records(out / split)]


@pytest.mark.parametrize("layout", ["MD17", "flat energies", "rMD17"])
def test_records_hold_the_frames_of_every_layout(tmp_path, layout):
    content = arrays(layout if layout == "rMD17" else "MD17")
    if layout == "flat energies":
        content["E"] = content["E"][:, 0]
    entry = convert(save(tmp_path / "a.npz", **content), tmp_path / "out")
    keys = ("coords", "energies", "forces") if layout == "rMD17" else ("R", "E", "F")
    positions, energies, forces = (content[key] for key in keys)
    energies = energies.reshape(-1)
    train = fids(tmp_path / "out", "train")
    constant = entry["energy_reference"]["constant"]
    assert constant == pytest.approx(energies[train].mean(), abs=1e-9)
    seen = []
    for split, size in (("train", 10), ("val", 4), ("test", 6)):
        written = records(tmp_path / "out" / split)
        assert len(written) == size == entry["splits"][split]["frames"]
        for fields in written:
            frame = fields["fid"]
            assert fields["y"] == pytest.approx(energies[frame] - constant, abs=1e-9)
            np.testing.assert_allclose(fields["pos"], positions[frame], rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(fields["force"], forces[frame], rtol=1e-6)
            assert fields["force"].dtype == fields["pos"].dtype == torch.float32
            assert fields["atomic_numbers"].tolist() == [8, 1, 1]
            assert (fields["natoms"], fields["sid"]) == (3, 0)
            assert fields["cell"].shape == (1, 3, 3)
            assert not fields["cell"].any()
            assert fields["pbc"].tolist() == [[False] * 3]
            assert fields["fixed"].tolist() == [0] * 3
            assert fields["tags"].tolist() == [2] * 3
        seen += [fields["fid"] for fields in written]
    assert sorted(seen) == list(range(20))


def test_files_next_to_the_records(tmp_path):
    source = save(tmp_path / "water.npz", **arrays("MD17"))
    entry = convert(source, tmp_path / "out")
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert content["units"] == {"y": "kcal/mol", "force": "kcal/mol/A", "pos": "A", "cell": "A"}
    (stored,) = content["conversions"]
    assert stored == json.loads(json.dumps(entry))
    (file,) = stored["sources"]
    assert file["notes"]["theory"] == "CCSD(T)"
    assert file["notes"]["md5"] == "0123"
    assert len(file["sha256"]) == 64
    assert stored["split"]["seed"] == 1
    forces = np.concatenate([f["force"] for f in records(tmp_path / "out/train")])
    rms = float(np.sqrt((forces.astype(np.float64) ** 2).mean()))
    assert stored["statistics"]["train"]["force_rms"] == pytest.approx(rms)
    systems = json.loads((tmp_path / "out/systems.json").read_text())
    assert systems["water"]["formula"] == "H2O"
    metadata = np.load(tmp_path / "out/val/metadata.npz")
    assert metadata["fid"].tolist() == fids(tmp_path / "out", "val")
    with open_shard(tmp_path / "out/train/data.0000.lmdb") as env, env.begin() as transaction:
        for _, value in transaction.cursor():
            assert b"numpy" not in value


def test_a_split_is_that_of_torchmd_net(tmp_path):
    utils = pytest.importorskip("torchmdnet.utils")
    expected = utils.train_val_test_split(20, 10, 4, None, seed=7)
    convert(save(tmp_path / "a.npz", **arrays()), tmp_path / "out", split={"seed": 7})
    for name, rows in zip(("train", "val", "test"), expected):
        assert fids(tmp_path / "out", name) == sorted(rows.tolist())


def test_original_labels_and_electronvolts(tmp_path):
    content = arrays()
    entry = convert(
        save(tmp_path / "a.npz", **content), tmp_path / "out", labels="original", units="eV"
    )
    assert entry["labels"]["keys"] == {"energy": "old_energies", "forces": "old_forces"}
    constant = entry["energy_reference"]["constant"]
    assert entry["energy_reference"]["unit"] == "eV"
    for fields in records(tmp_path / "out/test"):
        energy = content["old_energies"][fields["fid"]] * KCAL - constant
        assert fields["y"] == pytest.approx(energy, abs=1e-9)
        forces = content["old_forces"][fields["fid"]] * KCAL
        np.testing.assert_allclose(fields["force"], forces, rtol=1e-6)


def test_workers_do_not_change_the_records(tmp_path):
    source = save(tmp_path / "a.npz", **arrays())
    for workers in (1, 2):
        convert(source, tmp_path / f"out{workers}", workers=workers)
    for split in ("train", "val", "test"):
        one, two = (records(tmp_path / f"out{n}" / split) for n in (1, 2))
        assert len(one) == len(two)
        for first, second in zip(one, two):
            assert first.keys() == second.keys()
            for key, value in first.items():
                assert np.array_equal(value, second[key]), key


def test_test_file_is_not_mixed(tmp_path):
    train = save(tmp_path / "a_train.npz", **arrays(seed=1))
    test = save(tmp_path / "a_test.npz", **arrays(seed=2, frames=8))
    entry = convert(train, tmp_path / "out", test_file=str(test))
    assert [c["frames"] for c in entry["splits"].values()] == [10, 4, 8]
    assert entry["split"]["unused"] == 6
    written = records(tmp_path / "out/test")
    assert [fields["fid"] for fields in written] == list(range(8))
    expected = arrays(seed=2, frames=8)["coords"][5]
    np.testing.assert_allclose(written[5]["pos"], expected, rtol=1e-6, atol=1e-7)
    convert(train, tmp_path / "few", test_file=str(test), split={"test": 3})
    assert len(fids(tmp_path / "few", "test")) == 3
    with pytest.raises(DataError, match=r"a_test\.npz.*--test-file a_test\.npz"):
        convert([train, test], tmp_path / "mixed")
    with pytest.raises(DataError, match="given twice"):
        convert(train, tmp_path / "mixed", test_file=str(train))


@pytest.mark.parametrize("key", ["old_indices", "coords"])
def test_test_frames_among_the_training_frames_are_refused(tmp_path, key):
    first, second = arrays(seed=1, frames=10), arrays(seed=2, frames=8)
    second[key][3] = first[key][6]
    train = save(tmp_path / "a.npz", **first)
    test = save(tmp_path / "b.npz", **second)
    message = rf"b\.npz: `{key}`: record 3 is also .*\(frame 6 of .*a\.npz\), 1 such"
    with pytest.raises(DataError, match=message):
        convert(train, tmp_path / "out", test_file=str(test), split={"train": 8, "val": 2})
    assert not (tmp_path / "out").exists()


def test_several_files_are_taken_one_after_the_other(tmp_path):
    files = [save(tmp_path / f"{n}.npz", **arrays(seed=n, frames=10)) for n in (1, 2)]
    rows = tmp_path / "train.txt"
    rows.write_text("3\n13\n")
    (tmp_path / "val.csv").write_text("0\n\n19\n")
    split = {"train_indices": str(rows), "val_indices": str(tmp_path / "val.csv")}
    convert(files, tmp_path / "out", split=split)
    written = records(tmp_path / "out/train")
    assert [fields["fid"] for fields in written] == [3, 13]
    for fields, seed in zip(written, (1, 2)):
        expected = arrays(seed=seed, frames=10)["forces"][3]
        np.testing.assert_allclose(fields["force"], expected, rtol=1e-6)
    assert fids(tmp_path / "out", "val") == [0, 19]
    assert len(fids(tmp_path / "out", "test")) == 16
    other = save(tmp_path / "c.npz", **arrays(nuclear_charges=np.array([8, 1, 6])))
    with pytest.raises(DataError, match=r"c\.npz: its atoms"):
        convert([files[0], other], tmp_path / "mixed")
