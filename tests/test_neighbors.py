"""Our neighbour search against fairchem's: the same edges, in its order, to the bit."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, fcc211, hcp0001, molecule
from ase.io import read
from fairchem.core.common.utils import radius_graph_pbc
from fairchem.core.datasets import create_dataset, data_list_collater
from fairchem.core.models.base import GraphModelMixin
from torch_geometric.data import Data

from ndem_ocp.models import join_views, with_second_view
from ndem_ocp.models.neighbors import NearestNeighbors, edges, pairs, periodic_edges, structures

KEYS = {"y": "energy", "force": "forces"}
REAL = Path(os.environ.get("NDEM_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


class Fairchems(GraphModelMixin):
    """What a backbone has that makes a graph."""

    use_pbc, otf_graph, use_pbc_single = True, True, False

    def __init__(self, cutoff, max_neighbors, **options):
        self.cutoff, self.max_neighbors = cutoff, max_neighbors
        vars(self).update(options)


class Ours(NearestNeighbors, Fairchems):
    pass


def data_of(atoms: Atoms) -> Data:
    return Data(
        pos=torch.tensor(atoms.positions, dtype=torch.float32),
        cell=torch.tensor(np.array(atoms.cell), dtype=torch.float32)[None],
        natoms=torch.tensor([len(atoms)]),
        atomic_numbers=torch.tensor(atoms.numbers).float(),
        pbc=torch.tensor(atoms.pbc)[None],
    )


def batch_of(*frames: Atoms):
    return data_list_collater([data_of(atoms) for atoms in frames], otf_graph=True)


def rattled(batch, sigma=0.1, seed=0):
    moved = copy.copy(batch)
    generator = torch.Generator().manual_seed(seed)
    moved.pos = batch.pos + sigma * torch.randn(batch.pos.shape, generator=generator)
    return moved


def assert_same(batch, cutoff, max_neighbors, strictly, left_to_fairchem=False):
    ours = periodic_edges(batch, cutoff, max_neighbors, strictly)
    assert (ours is None) == left_to_fairchem
    theirs = radius_graph_pbc(copy.copy(batch), cutoff, max_neighbors, strictly)
    for a, b in zip(ours or theirs, theirs):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    options = {"enforce_max_neighbors_strictly": strictly}
    graph = Ours(cutoff, max_neighbors, **options).generate_graph(copy.copy(batch))
    expected = Fairchems(cutoff, max_neighbors, **options).generate_graph(copy.copy(batch))
    assert vars(graph).keys() == vars(expected).keys()
    for name, value in vars(expected).items():
        found = getattr(graph, name)
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value
    return theirs


def assert_same_in_all_ways(batch, cutoff, wanted=(1, 8, 20, 2000)):
    for max_neighbors in wanted:
        for strictly in (True, False):
            assert_same(batch, cutoff, max_neighbors, strictly)


# --- crystals ------------------------------------------------------------------------------------


def slab(build=fcc111, size=(2, 2, 3), pbc=True):
    atoms = build("Ru" if build is hcp0001 else "Cu", size, vacuum=8.0)
    add_adsorbate(atoms, "O", 1.5)
    atoms.pbc = pbc
    return atoms


CRYSTALS = {
    "one atom": bulk("Cu"),
    "cubic": bulk("NaCl", "rocksalt", a=5.64, cubic=True),
    "hcp": bulk("Ti"),
    "fcc111": slab(),
    "fcc211": slab(fcc211, (3, 2, 3)),
    "hcp0001": slab(hcp0001),
}


OPEN = {
    "open slab": slab(pbc=(True, True, False)),
    "wire": slab(fcc211, (3, 2, 3), pbc=(False, True, False)),
}


@pytest.mark.parametrize("name", [*CRYSTALS, *OPEN])
def test_perfect_crystals(name):
    """Many neighbours are equally far, some of them exactly."""
    batch = batch_of((CRYSTALS | OPEN)[name])
    assert_same_in_all_ways(batch, 6.0)
    assert_same_in_all_ways(rattled(batch), 6.0)


def test_there_are_ties_among_them():
    """Without ties at the last neighbour these tests would not see how they are broken."""
    batch = batch_of(CRYSTALS["fcc111"])
    found = [periodic_edges(batch, 6.0, 20, strictly)[0] for strictly in (True, False)]
    assert found[0].shape[1] == 20 * len(batch.pos)
    assert found[1].shape[1] > 24 * len(batch.pos)


def test_a_mixed_batch_of_crystals():
    """The images that fairchem looks at, and how it breaks ties, depend on the whole batch."""
    batch = batch_of(*CRYSTALS.values())
    assert_same_in_all_ways(batch, 6.0, (8, 20))
    assert_same_in_all_ways(rattled(batch), 6.0, (8, 20))


def test_oc20s_cutoff():
    assert_same(batch_of(slab()), 12.0, 20, True)
    assert_same(batch_of(slab(), CRYSTALS["cubic"]), 12.0, 20, False)


def test_demo_data(demo_data):
    for split in ("train", "val_ood"):
        source = {"src": str(demo_data / split), "format": "lmdb", "key_mapping": KEYS}
        dataset = create_dataset(source, "train")
        batch = data_list_collater([dataset[i] for i in range(0, 12, 3)], otf_graph=True)
        assert_same(batch, 8.0, 20, True)
        assert_same(rattled(batch), 8.0, 20, True)


# --- everything else -----------------------------------------------------------------------------


def random_structure(rng) -> Atoms:
    kind = rng.integers(4)
    if kind == 0:  # any cell: skewed, flat, left-handed
        cell = rng.normal(0, 3, (3, 3)) + np.diag(rng.uniform(1, 6, 3))
    elif kind == 1:  # small: an atom is surrounded by its own images
        cell = np.diag(rng.uniform(1.5, 3, 3)) + rng.normal(0, 0.4, (3, 3))
    elif kind == 2:  # a box with room
        cell = np.diag(rng.uniform(8, 15, 3))
    else:  # a slab
        cell = np.diag([*rng.uniform(3, 6, 2), 20.0])
    if abs(np.linalg.det(cell)) < 3 or np.linalg.norm(np.linalg.inv(cell), axis=0).max() > 1:
        return random_structure(rng)
    number = int(rng.integers(1, 3 if kind == 1 else 12))
    inside = rng.random((number, 3))
    if rng.random() < 0.3:
        inside = inside * 4 - 2  # not wrapped into the cell
    if kind == 3 or rng.random() < 0.3:
        inside[:, 2] *= 0.2
    if rng.random() < 0.3:
        inside = np.round(inside * 4) / 4  # on a lattice, some in one place
    return Atoms("H" * number, cell=cell, positions=inside @ cell, pbc=True)


@pytest.mark.parametrize("seed", range(8))
def test_random_structures(seed):
    """240 batches of one to four structures, with anything for the options."""
    rng = np.random.default_rng(seed)
    for _ in range(30):
        frames = [random_structure(rng) for _ in range(rng.integers(1, 5))]
        periodic = rng.random(3) < 0.7
        periodic[rng.integers(3)] = True
        for atoms in frames:
            atoms.pbc = periodic
        cutoff = float(rng.choice([1.0, 2.5, 3.3, 4.0, 5.0]))
        max_neighbors = int(rng.choice([1, 2, 5, 12, 20, 300]))
        assert_same(batch_of(*frames), cutoff, max_neighbors, bool(rng.integers(2)))


def test_molecules_in_a_box():
    names = ("H2O", "CH3CH2OH", "C6H6", "CO")
    frames = [molecule(name, cell=[20, 21, 22], pbc=True) for name in names]
    assert_same_in_all_ways(batch_of(*frames), 6.0, (2, 20))
    assert_same_in_all_ways(batch_of(*frames, slab()), 6.0, (2, 20))


def test_an_atom_without_neighbors():
    alone = Atoms("He", cell=[20, 20, 20], pbc=True)
    theirs = assert_same(batch_of(alone), 6.0, 20, True)
    assert theirs[0].shape == (2, 0)
    theirs = assert_same(batch_of(alone, slab(), alone), 6.0, 20, True)
    assert theirs[2].tolist() == [0, 13 * 20, 0]


def test_a_first_radius_that_is_too_small_or_too_large(monkeypatch):
    """The guess of the radius decides how long the search takes, not what it finds."""
    batch = rattled(batch_of(slab(), CRYSTALS["cubic"], molecule("C6H6", cell=[15] * 3, pbc=True)))
    for surplus in (0.01, 0.5, 1.0, 30.0, 1e4):
        monkeypatch.setattr(structures, "SURPLUS", surplus)
        assert_same_in_all_ways(batch, 6.0, (12, 20))


def test_equally_far_on_both_sides_of_the_first_radius(monkeypatch):
    """fairchem keeps what is 0.01 A^2 beyond the last neighbour, in the first radius or not."""
    found = edges.structures_of
    monkeypatch.setattr(
        edges, "structures_of", lambda *a: found(*a)._replace(radius=torch.tensor([2.0005]))
    )
    places = [[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 2.00125]]
    batch = batch_of(Atoms("H4", positions=places, cell=[20] * 3, pbc=True))
    theirs = assert_same(batch, 6.0, 1, False)
    assert (theirs[0][1] == 0).sum() == 3


@pytest.mark.parametrize("at_a_time", [1, 3000, 1 << 24])
def test_structures_measured_together(at_a_time, monkeypatch):
    monkeypatch.setattr(pairs, "CPU_PAIRS", at_a_time)
    batch = batch_of(slab(), CRYSTALS["one atom"], slab(hcp0001), CRYSTALS["cubic"])
    assert_same_in_all_ways(batch, 6.0, (12, 20))


def test_autocast():
    """Under autocast fairchem's image offsets are rounded; the edges are still its own."""
    batch = rattled(batch_of(slab(), CRYSTALS["cubic"]))
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(batch, 6.0, 20, True)
        assert_same(batch, 6.0, 20, False)


# --- two views -----------------------------------------------------------------------------------


def part_of(batch, found, graph):
    """Edges of one structure of a batch, its first atom as 0."""
    index, cells, _ = found
    inside = batch.batch[index[1]] == graph
    return index[:, inside] - int(batch.ptr[graph]), cells[inside]


@pytest.mark.parametrize("viewed", [(0, 1, 2), (0, 2)])
def test_two_views_are_two_searches(viewed):
    clean = rattled(batch_of(slab(), CRYSTALS["cubic"], slab(hcp0001)), 0.02)
    chosen = torch.isin(clean.batch, torch.tensor(viewed))
    second = rattled(clean, seed=1)
    marked = with_second_view(clean, (second.pos - clean.pos) * chosen[:, None], chosen)
    views = join_views(marked)
    second.pos = clean.pos + marked.ndem_eps
    for strictly in (True, False):
        assert_same(views.joint, 6.0, 20, strictly)
        joint = periodic_edges(views.joint, 6.0, 20, strictly)
        alone = [periodic_edges(view, 6.0, 20, strictly) for view in (clean, second)]
        expected = [part_of(clean, alone[0], g) for g in range(3)]
        expected += [part_of(second, alone[1], g) for g in viewed]
        for graph, part in enumerate(expected):
            for a, b in zip(part_of(views.joint, joint, graph), part):
                assert torch.equal(a, b)


# --- what is left to fairchem --------------------------------------------------------------------


def test_nothing_periodic_is_left_to_fairchem():
    frames = [molecule("C6H6"), molecule("CO")]
    assert_same(batch_of(*frames), 6.0, 8, True, left_to_fairchem=True)


def test_different_directions_are_refused_as_fairchem_refuses_them():
    frames = [slab(), slab(pbc=(True, True, False))]
    with pytest.raises(RuntimeError, match="different PBC configurations"):
        Ours(6.0, 8).generate_graph(batch_of(*frames))


def test_positions_that_are_not_finite_are_left_to_fairchem():
    batch = batch_of(slab(), slab())
    batch.pos[3, 0] = torch.nan
    assert_same(batch, 6.0, 8, True, left_to_fairchem=True)


def test_a_cell_without_volume_is_left_to_fairchem():
    flat = Atoms("H2", positions=[[0, 0, 0], [0, 0, 1]], cell=np.diag([5, 5, 0]), pbc=True)
    assert periodic_edges(batch_of(flat), 6.0, 8, True) is None


@pytest.mark.parametrize(
    "options", [{"use_pbc_single": True}, {"otf_graph": False}, {"use_pbc": False}]
)
def test_other_graphs_are_fairchems(options, monkeypatch):
    asked = []
    monkeypatch.setattr(
        Fairchems, "generate_graph", lambda self, *arguments: asked.append(arguments)
    )
    Ours(6.0, 8, **options).generate_graph(batch_of(slab()), cutoff=5.0)
    assert asked[0][1:] == (5.0, None, None, None, None, False)


# --- gradients and real data ---------------------------------------------------------------------


def test_gradients_go_through_distances():
    gradients = []
    for kind in (Ours, Fairchems):
        batch = rattled(batch_of(slab()))
        batch.pos.requires_grad_()
        batch.cell.requires_grad_()
        graph = kind(6.0, 12).generate_graph(batch)
        graph.edge_distance.square().sum().backward()
        gradients.append((batch.pos.grad, batch.cell.grad))
    for a, b in zip(*gradients):
        assert torch.equal(a, b)
        assert a.abs().sum() > 0


def test_real_relaxations():
    """OC20's, clean and perturbed; all of them by fives with NDEM_SOAK, a few without."""
    files = sorted((REAL / "oc20_dft").glob("*/*.traj"))
    if not files:
        pytest.skip(f"no oc20_dft/*/*.traj in {REAL}; set NDEM_TEST_DATA to the test data")
    soak = "NDEM_SOAK" in os.environ
    frames = [f for file in (files if soak else files[::4]) for f in read(file, "::5")]
    frames = frames if soak else frames[::40]
    for start in range(0, len(frames), 3):
        batch = batch_of(*frames[start : start + 3])
        everywhere = torch.ones(len(batch.pos), dtype=torch.bool)
        eps = rattled(batch, seed=start).pos - batch.pos
        eps[batch.pos[:, 2] < batch.pos[:, 2].mean()] = 0  # about what is fixed
        joint = join_views(with_second_view(batch, eps, everywhere)).joint
        theirs = radius_graph_pbc(joint, 12.0, 20, True)
        for a, b in zip(periodic_edges(joint, 12.0, 20, True), theirs):
            assert torch.equal(a, b)
