"""The batches of a benchmark: real structures, the same for every arm."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairchem.core.datasets import create_dataset, data_list_collater
from torch_geometric.data import Batch, Data

import ndem_ocp
from fairchem_kit.data.demo import make_demo
from fairchem_kit.provenance import files_hash
from fairchem_kit.words import counted
from ndem_ocp.bench.errors import BenchError

DEMO = Path("data/demo")  # the demo's data set; made in seconds if absent
KEYS = {"y": "energy", "force": "forces"}
READERS = {"ours": "ndem_lmdb", "upstream": "lmdb"}


def find_data(given: Path | None, progress: bool = True) -> Path:
    """The folder or file of LMDBs to read; by default the demo's training set, made if absent.

    Raises:
        BenchError: if there is nothing to read.
    """
    if given is None:
        if not (DEMO / "train").is_dir():
            print(f"Making the demo's data in {DEMO}.", flush=True)
            make_demo(DEMO, progress=progress)
        return DEMO / "train"
    for path in (given, given / "train"):
        if path.is_file() or any(path.glob("*.lmdb")):
            return path
    raise BenchError(
        f"--data {given}: no *.lmdb in it or in its folder train. `ndem data ase` makes them "
        "from ASE files, `ndem data demo` without any files."
    )


def data_hash(path: Path) -> str:
    """Hash of the contents of the LMDBs."""
    return files_hash(path.parent, path.name) if path.is_file() else files_hash(path)


def open_data(path: Path, reader: str = "ours", key_mapping: dict[str, str] | None = None) -> Any:
    """Open the data set with a reader of :data:`READERS`."""
    ndem_ocp.register()
    source = {"src": str(path), "format": READERS[reader], "key_mapping": key_mapping or KEYS}
    return create_dataset(source, "train")


@dataclass(frozen=True)
class Batches:
    """Collated batches on the CPU, and the time to read them in this process."""

    batches: list[Batch]
    loading_s: list[float]  # reading and collation, per batch

    @property
    def atoms(self) -> list[int]:
        return [int(batch.natoms.sum()) for batch in self.batches]

    def on(self, number: int, device: torch.device) -> Batch:
        """A copy of a batch for one step, because models may modify it."""
        return self.batches[number % len(self.batches)].clone().to(device)


def read_batches(
    dataset: Any, batch_size: int, count: int, seed: int = 0, repeat: tuple[int, int] = (1, 1)
) -> Batches:
    """``count`` batches of different structures, drawn once with ``seed``.

    Args:
        dataset: from :func:`open_data`. batch_size: structures in each. count: number of batches.
            seed: selects the structures. repeat: make a supercell of each structure, repeated along
            its first two cell vectors.

    Raises:
        BenchError: if the data set has fewer structures than one batch.
    """
    if batch_size > len(dataset):
        raise BenchError(
            f"a batch has {counted(batch_size, 'structure')}, but the data set only "
            f"{len(dataset)}: give a larger --data or smaller --batch-sizes."
        )
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    batches, seconds = [], []
    for number in range(count):
        chosen = [order[(number * batch_size + i) % len(order)] for i in range(batch_size)]
        begin = time.perf_counter()
        structures = [dataset[index] for index in chosen]
        batch = data_list_collater(structures, otf_graph=True)
        seconds.append(time.perf_counter() - begin)
        if repeat != (1, 1):
            structures = [supercell(structure, *repeat) for structure in structures]
            batch = data_list_collater(structures, otf_graph=True)
        batches.append(batch)
    return Batches(batches, seconds)


def supercell(data: Data, first: int, second: int) -> Data:
    """A supercell of ``first`` x ``second`` copies of a periodic structure.

    Energies are multiplied, forces and everything else per atom repeated.
    """
    copies = first * second
    cell = data.cell.view(3, 3)
    shifts = torch.stack([i * cell[0] + j * cell[1] for i in range(first) for j in range(second)])
    atoms = data.pos.shape[0]
    larger = data.clone()
    for key, value in data.items():
        if isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == atoms:
            larger[key] = value.repeat(copies, *[1] * (value.dim() - 1))
    larger.pos = (data.pos[None] + shifts[:, None]).reshape(-1, 3)
    scale = torch.tensor([first, second, 1], dtype=cell.dtype)
    larger.cell = (cell * scale[:, None]).view_as(data.cell)
    larger.natoms = (
        torch.as_tensor(data.natoms) * copies
        if torch.is_tensor(data.natoms)
        else (int(data.natoms) * copies)
    )
    larger.energy = data.energy * copies
    return larger
