"""Compare neighbour searches on real structures, for docs/neighbors.md:

    python -m ndem_ocp.bench.experiments.neighbors --data DIR [--repeats N]

DIR contains relaxation trajectories that ASE can read (DIR/*.traj, DIR/*/*.traj). The middle frame
of each is used, eight structures per batch, with OC20's cutoff of 12 A and 20 neighbours. All
searches are called alternately on each batch, on one thread, and the shortest processor time of
each counts. Libraries that are not installed are skipped: `pip install vesin matscipy
nvalchemi-toolkit-ops`. Results are written to results/neighbors.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.io import read
from fairchem.core.common.utils import get_max_neighbors_mask, radius_graph_pbc
from fairchem.core.datasets import data_list_collater
from torch_geometric.data import Batch, Data

from fairchem_kit.provenance import config_hash, files_hash, provenance
from ndem_ocp.bench.checkout import ROOT, in_checkout
from ndem_ocp.bench.pages.neighbors import BATCH, CUTOFF, NEIGHBORS
from ndem_ocp.models import join_views, with_second_view
from ndem_ocp.models.neighbors import periodic_edges
from ndem_ocp.models.neighbors.pairs import SAME_ATOM, Pairs, pairs_of, surroundings
from ndem_ocp.models.neighbors.structures import structures_of

RESULTS = ROOT / "results/neighbors.json"
SIGMA = 0.1
Listed = tuple[np.ndarray, np.ndarray, np.ndarray]  # target, source, image of all pairs


# --- searches of a batch -------------------------------------------------------------------------


def fairchem(batch: Batch) -> Any:
    return radius_graph_pbc(copy.copy(batch), CUTOFF, NEIGHBORS, True)


def ours(batch: Batch) -> Any:
    return periodic_edges(batch, CUTOFF, NEIGHBORS, True)


def pairs_of_both(joint: Batch) -> Pairs:
    """Pairs within the first radius, with a search for each view."""
    structures = structures_of(joint, CUTOFF, NEIGHBORS)
    everyone = torch.arange(len(structures.pos))
    return pairs_of(structures, everyone, surroundings(structures, everyone, structures.radius))


def pairs_with_skin(joint: Batch) -> Pairs:
    """The same, from one search for the first view with a skin, for both views."""
    both = structures_of(joint, CUTOFF, NEIGHBORS)
    atoms, graphs = len(both.pos) // 2, len(both.natoms) // 2
    first = both._replace(
        pos=both.pos[:atoms], graph=both.graph[:atoms],
        natoms=both.natoms[:graphs], shifts=both.shifts[:graphs],
    )  # fmt: skip
    moved = (both.pos[atoms:] - first.pos).norm(dim=-1)
    skin = torch.zeros(graphs).scatter_reduce(0, first.graph, moved, "amax")
    radius = torch.maximum(both.radius[:graphs], both.radius[graphs:]) + 2 * skin + 1e-3
    everyone = torch.arange(atoms)
    wide = pairs_of(first, everyone, surroundings(first, everyone, radius))
    limit = (both.radius**2)[both.graph]
    one = wide.where(wide.squared <= limit[wide.target])
    target, source = wide.target + atoms, wide.source + atoms
    place = both.pos[source] + both.shifts[both.graph[target], wide.image]
    x, y, z = (both.pos[target] - place).square_().unbind(-1)
    squared = x + y + z
    two = Pairs(target, source, wide.image, squared)
    two = two.where((squared <= limit[target]) & (squared > SAME_ATOM))
    return Pairs(*(torch.cat(fields) for fields in zip(one, two)))


# --- libraries -----------------------------------------------------------------------------------


def with_ase(frames: list[Atoms]) -> list[Listed]:
    from ase.neighborlist import primitive_neighbor_list

    return [primitive_neighbor_list("ijS", a.pbc, a.cell[:], a.positions, CUTOFF) for a in frames]


def with_matscipy(frames: list[Atoms]) -> list[Listed]:
    from matscipy.neighbours import neighbour_list

    return [neighbour_list("ijS", a, CUTOFF) for a in frames]


def with_vesin(frames: list[Atoms]) -> list[Listed]:
    from vesin import NeighborList

    search = NeighborList(cutoff=CUTOFF, full_list=True, n_threads=1)
    return [search.compute(a.positions, a.cell[:], True, "ijS") for a in frames]


def with_nvalchemi(batch: Batch) -> list[Listed]:
    from nvalchemiops.torch.neighbors import neighbor_list

    found, _, image = neighbor_list(
        batch.pos, CUTOFF, cell=batch.cell, pbc=batch.pbc, batch_idx=batch.batch.int(),
        batch_ptr=batch.ptr.int(), return_neighbor_list=True,
    )  # fmt: skip
    return [(*found.long().numpy(), image.numpy())]


LIBRARIES: dict[str, tuple[str, Callable[[Any], list[Listed]]]] = {
    "ASE primitive_neighbor_list": ("ase", with_ase),
    "matscipy neighbour_list": ("matscipy", with_matscipy),
    "vesin NeighborList": ("vesin", with_vesin),
    "nvalchemi-toolkit-ops neighbor_list": ("nvalchemi-toolkit-ops", with_nvalchemi),
}


def chosen_as_fairchem(batch: Batch, found: list[Listed]) -> torch.Tensor:
    """(2, E) fairchem's choice from a library's pairs, with fairchem's order and distances."""
    starts = batch.ptr[:-1].tolist() if len(found) > 1 else [0]
    target, source, image = (
        torch.cat([torch.as_tensor(part[k]).long() + (start if k < 2 else 0)
                   for part, start in zip(found, starts)])
        for k in range(3)
    )  # fmt: skip
    key = ((target * len(batch.pos) + source) * 64 + image[:, 0] + 32) * 64 + image[:, 1] + 32
    order = (key * 64 + image[:, 2] + 32).argsort()
    target, source, image = target[order], source[order], image[order].float()
    shift = torch.bmm(image[:, None], batch.cell[batch.batch[target]]).squeeze(1)
    squared = ((batch.pos[target] - (batch.pos[source] + shift)) ** 2).sum(-1)
    inside = squared <= CUTOFF**2
    target, source, squared = target[inside], source[inside], squared[inside]
    mask, _ = get_max_neighbors_mask(batch.natoms, target, squared, NEIGHBORS, 0.01, True)
    return torch.stack([source[mask], target[mask]])


# --- measuring -----------------------------------------------------------------------------------


def batch_of(frames: list[Atoms]) -> Batch:
    data = [
        Data(
            pos=torch.tensor(atoms.positions, dtype=torch.float32),
            cell=torch.tensor(np.array(atoms.cell), dtype=torch.float32)[None],
            natoms=torch.tensor([len(atoms)]),
            pbc=torch.tensor(atoms.pbc)[None],
        )
        for atoms in frames
    ]
    return data_list_collater(data, otf_graph=True)


def measured(searches: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Shortest processor time of each search in seconds; they are called alternately."""
    times: dict[str, list[float]] = {name: [] for name in searches}
    for _ in range(repeats + 1):  # the first round is for warming up
        for name, search in searches.items():
            start = time.process_time()
            search()
            times[name].append(time.process_time() - start)
    return {name: min(found[1:]) for name, found in times.items()}


def run(frames: list[Atoms], repeats: int) -> dict[str, Any]:
    """Results for one batch: seconds per search, and which edges agree."""
    batch = batch_of(frames)
    eps = SIGMA * torch.randn(batch.pos.shape, generator=torch.Generator().manual_seed(0))
    everywhere = torch.ones(len(eps), dtype=torch.bool)
    joint = join_views(with_second_view(batch, eps, everywhere)).joint
    second = copy.copy(batch)
    second.pos = batch.pos + eps
    slow = {
        "fairchem, one view": lambda: fairchem(batch),
        "fairchem, two views": lambda: fairchem(joint),
    }
    fast: dict[str, Callable[[], Any]] = {
        "ours, one view": lambda: ours(batch),
        "ours, one view, perturbed": lambda: ours(second),
        "ours, two views": lambda: ours(joint),
        "pairs, each view searched": lambda: pairs_of_both(joint),
        "pairs, first view searched with a skin": lambda: pairs_with_skin(joint),
    }
    agree = {
        "ours": all(
            torch.equal(a, b)
            for data in (batch, second, joint)
            for a, b in zip(ours(data), fairchem(data))
        ),
        "skin": all(map(torch.equal, pairs_of_both(joint), pairs_with_skin(joint))),
    }
    for name, (package, search) in LIBRARIES.items():
        if not version_of(package):
            continue
        given = batch if package.startswith("nvalchemi") else frames
        fast[f"{name}, all pairs"] = lambda search=search, given=given: search(given)
        fast[f"{name}, then fairchem's choice"] = lambda search=search, given=given: (
            chosen_as_fairchem(batch, search(given))
        )
        found = chosen_as_fairchem(batch, search(given))
        agree[name] = torch.equal(found, fairchem(batch)[0])
    seconds = {**measured(slow, min(repeats, 3)), **measured(fast, repeats)}
    return {"atoms": [len(a) for a in frames], "seconds": seconds, "agree": agree}


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of trajectories")
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    files = sorted([*args.data.glob("*.traj"), *args.data.glob("*/*.traj")])
    if len(files) < BATCH:
        parser.error(f"--data: {len(files)} trajectories, but at least {BATCH} are needed")
    torch.set_num_threads(1)
    trajectories = [read(file, ":") for file in files[: len(files) // BATCH * BATCH]]
    frames = [frames[len(frames) // 2] for frames in trajectories]
    found = {
        **provenance(ROOT),
        "data": {"trajectories": len(frames), "hash": files_hash(args.data, "**/*.traj")},
        "config_hash": config_hash(
            {"cutoff": CUTOFF, "neighbors": NEIGHBORS, "batch": BATCH, "repeats": args.repeats}
        ),
        "seeds": [0],
        "units": {"times": "s of processor time per batch, minimum of the repeats"},
        "packages": {
            package: version_of(package)
            for package, _ in LIBRARIES.values() if version_of(package)
        },
        "batches": [
            run(frames[start : start + BATCH], args.repeats)
            for start in range(0, len(frames), BATCH)
        ],
    }  # fmt: skip
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(in_checkout(main))
