"""The generated data set, and statistics of data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import data_cli as cli
from fairchem_kit.data.check import check_dataset
from fairchem_kit.data.demo import MAX_FORCE, make_demo
from fairchem_kit.data.fields import small_displacement
from fairchem_kit.data.statistics import Accumulator, dataset_statistics
from fairchem_kit.provenance import files_hash
from test_data_support import demo, record, records, write_split

__all__ = ["demo"]  # a fixture


def test_demo_is_sound_and_as_described(demo):
    reports = check_dataset(demo, progress=False, isolate=False)
    assert [Path(r.path).name for r in reports] == ["train", "val_id", "val_ood"]
    assert [r.findings for r in reports] == [[], [], []]
    assert [r.statistics.frames for r in reports] == [40, 10, 10]
    train = reports[0].statistics
    assert train.energy_mean == pytest.approx(0, abs=1e-6)
    assert 0.3 < train.force_rms < 1.5
    combinations = {}
    for split in ("train", "val_id", "val_ood"):
        for fields in records(demo / split):
            free = fields["fixed"] == 0
            assert fields["force"][free].norm(dim=1).max() <= MAX_FORCE * (1 + 1e-6)
            assert set(fields["tags"].tolist()) == {0, 1, 2}
            assert (fields["tags"][~free] == 0).all()
            elements = frozenset(fields["atomic_numbers"].tolist())
            combinations.setdefault(split, set()).add(elements)
    assert combinations["val_id"] <= combinations["train"]
    assert not combinations["val_ood"] & combinations["train"]
    assert set.union(*map(set, combinations["val_ood"])) <= set.union(
        *map(set, combinations["train"])
    )


def test_demo_is_the_same_for_any_number_of_workers(demo, tmp_path):
    make_demo(tmp_path / "demo", size="small", seed=1, workers=2, progress=False)
    first, second = records(demo / "train"), records(tmp_path / "demo" / "train")
    assert len(first) == len(second)
    for a, b in zip(first, second):
        assert all(np.array_equal(a[key], b[key]) for key in a)
    # to the byte, so that a result's hash tells its data
    assert files_hash(demo / "train") == files_hash(tmp_path / "demo" / "train")
    make_demo(tmp_path / "other", size="small", seed=2, progress=False)
    assert records(tmp_path / "other" / "train")[0]["y"] != first[0]["y"]
    for name in ("dataset.json", "systems.json"):
        assert str(tmp_path) not in (tmp_path / "demo" / name).read_text()


def test_what_makes_data_leaves_torchs_threads_alone(tmp_path):
    """`ndem bench` and `ndem demo` make data and then train in the same process."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        make_demo(tmp_path / "demo", size="small", workers=1, progress=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_demo_command(tmp_path, capsys):
    arguments = ["demo", "--out", str(tmp_path / "d"), "--size", "small", "--workers", "1"]
    assert cli.main([*arguments, "--no-progress"]) == 0
    assert cli.main([*arguments, "--no-progress"]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_statistics_are_those_of_the_records(demo):
    statistics = dataset_statistics(demo / "train")
    fields = records(demo / "train")
    energies = np.array([f["y"] for f in fields])
    free = np.concatenate([f["force"][f["fixed"] == 0].double().numpy() for f in fields])
    assert statistics.energy_mean == pytest.approx(energies.mean(), abs=1e-9)
    assert statistics.energy_stdev == pytest.approx(energies.std())
    assert statistics.force_rms == pytest.approx(np.sqrt((free**2).mean()))
    assert statistics.zero_force_mae == pytest.approx(np.abs(free).mean())
    assert statistics.free_atoms == len(free)
    assert statistics.systems == 4
    parts = Accumulator()
    for start in (0, 17, 30):
        chunk = Accumulator()
        for f in fields[start : {0: 17, 17: 30, 30: 40}[start]]:
            chunk.add(f)
        parts.merge(chunk)
    assert parts.result().energy_stdev == pytest.approx(energies.std())


def test_curvature_of_a_harmonic_crystal(tmp_path):
    """F = -c (X - X0) through a moving window that leaves the cell: c comes back."""
    rng = np.random.default_rng(0)
    start = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    items = []
    for fid in range(20):
        displacement = torch.tensor(0.02 * rng.standard_normal((2, 3)), dtype=torch.float32)
        wrapped = (start + displacement) % 10.0  # jumps between 0 and 10
        items.append(record(pos=wrapped, force=-7.0 * displacement, fid=fid))
    split = write_split(tmp_path / "train", *items)
    statistics = dataset_statistics(split)
    assert statistics.curvature_pairs == 19
    assert statistics.curvature == pytest.approx(7.0, rel=1e-4)
    few = dataset_statistics(write_split(tmp_path / "few", *items[:5]))
    assert (few.curvature, few.curvature_pairs) == (None, 4)


def test_displacement_is_by_the_nearest_image_in_periodic_directions_only():
    first = record().to_dict()
    moved = first["pos"] + torch.tensor([9.95, 0.0, 10.0])
    second = {**first, "pos": moved}
    np.testing.assert_allclose(small_displacement(first, second)[0], [-0.05, 0, 0], atol=1e-5)
    first["pbc"] = torch.tensor([[True, True, False]])
    np.testing.assert_allclose(small_displacement(first, second)[0], [-0.05, 0, 10], atol=1e-5)
