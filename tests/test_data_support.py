"""What the tests of the data tools share, and tests of their small functions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc100
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write
from torch_geometric.data import Data

from fairchem_kit.data.convert import convert
from fairchem_kit.data.demo import make_demo
from fairchem_kit.data.errors import DataError
from fairchem_kit.data.lmdb_writer import write_records
from fairchem_kit.data.plan import ConvertOptions
from fairchem_kit.data.shards import (
    iter_records,
    open_shard,
    record_count,
    shard_paths,
)
from fairchem_kit.data.sources.ase import expand_sources
from fairchem_kit.data.split import assign_sids, split_units
from fairchem_kit.data.tags import derive_tags

torch.set_num_threads(1)


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


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "demo"
    make_demo(out, size="small", seed=1, progress=False)
    return out


def record(**changes) -> Data:
    """A sound record of two atoms; a change to None removes the key."""
    fields = {
        "y": -1.0,
        "force": torch.full((2, 3), 0.5),
        "pos": torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 2.0]]),
        "cell": 10 * torch.eye(3).view(1, 3, 3),
        "pbc": torch.ones(1, 3, dtype=torch.bool),
        "atomic_numbers": torch.tensor([29, 8]),
        "natoms": 2,
        "fixed": torch.tensor([0, 0]),
        "tags": torch.tensor([1, 2]),
        "sid": 0,
        "fid": 0,
    }
    fields.update(changes)
    return Data(**{key: value for key, value in fields.items() if value is not None})


def write_split(folder: Path, *items: Data, natoms: list[int] | None = None) -> Path:
    folder.mkdir(parents=True)
    write_records(folder / "data.0000.lmdb", items, atoms=2 * len(items), count=len(items))
    np.savez(folder / "metadata.npz", natoms=np.array(natoms or [2] * len(items), dtype=np.int32))
    return folder


def test_tags_of_slabs_molecules_and_oxides():
    numbers, fixed = np.array([29, 8, 29, 8, 8, 1]), np.array([1, 1, 0, 0, 0, 0])
    assert derive_tags(numbers, fixed, True).tolist() == [0, 0, 1, 2, 2, 2]
    assert derive_tags(np.array([29, 29]), np.array([0, 0]), True).tolist() == [1, 1]
    assert derive_tags(np.array([29, 8, 8]), np.array([0, 1, 0]), True).tolist() == [1, 0, 2]
    assert derive_tags(np.array([8, 1, 1]), np.array([0, 0, 1]), False).tolist() == [2, 2, 0]
    assert derive_tags(np.array([8, 1, 1]), np.array([0, 0, 0]), True).tolist() == [1, 1, 1]


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
