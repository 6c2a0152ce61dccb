"""``ndem bench data``: speed of reading and collating structures, by number of workers."""

from __future__ import annotations

import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fairchem.core.datasets import create_dataset, data_list_collater
from torch.utils.data import DataLoader, RandomSampler
from tqdm import tqdm

import ndem_ocp
from fairchem_kit.data.reader import loader_options
from fairchem_kit.provenance import config_hash
from fairchem_kit.words import counted
from ndem_ocp.bench.batches import KEYS, data_hash
from ndem_ocp.bench.errors import BenchError
from ndem_ocp.bench.measure import summary

READERS: dict[str, dict[str, Any]] = {
    "ndem_lmdb": {"format": "ndem_lmdb"},
    "ndem_lmdb, checks: none": {"format": "ndem_lmdb", "checks": "none"},
    "lmdb": {"format": "lmdb"},
}
REFERENCE = "lmdb"
UNITS = {
    "structures_per_s": "structures per s, read and collated, from the first batch on",
    "atoms_per_s": "atoms per s",
    "start_s": "s until the first batch: starting the workers",
    "ratio": "of structures per s to fairchem's reader with as many workers, in the same round",
}


class LoadingBench:
    """Readers by number of workers, interleaved."""

    def __init__(self, data: Path, batch_size: int, batches: int, seed: int = 0) -> None:
        self.data = data
        self.batch_size, self.batches, self.seed = batch_size, batches, seed
        ndem_ocp.register()
        self.datasets = {
            name: create_dataset({"src": str(data), "key_mapping": KEYS, **source}, "train")
            for name, source in READERS.items()
        }
        self.rounds: dict[tuple[str, int], list[dict[str, float]]] = {}
        self.interrupted = False

    def run(self, workers: list[int], repeats: int, progress: bool = True) -> None:
        """Measure; the results so far are kept after Ctrl-C."""
        work = [(reader, count) for count in workers for reader in READERS]
        self.rounds = {key: [] for key in work}
        try:
            bar = tqdm(range(repeats), desc="reading", disable=not progress, leave=False)
            for number in bar:
                found = {}
                for reader, count in work:
                    bar.set_postfix_str(f"{reader}, {counted(count, 'worker')}")
                    found[reader, count] = self._pass(reader, count, self.seed + number)
                for key, value in found.items():
                    self.rounds[key].append(value)
        except KeyboardInterrupt:
            self.interrupted = True

    def _pass(self, reader: str, workers: int, seed: int) -> dict[str, float]:
        """One pass over a fixed number of batches, in random order."""
        dataset = self.datasets[reader]
        generator = torch.Generator().manual_seed(seed)
        count = self.batch_size * self.batches
        loader = DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=RandomSampler(dataset, True, count, generator),
            collate_fn=partial(data_list_collater, otf_graph=True),
            num_workers=workers,
            # each reader as its trainer would use it
            **(loader_options(workers) if reader != REFERENCE else {}),
        )
        began = time.perf_counter()
        batches = iter(loader)
        next(batches)
        first = time.perf_counter()
        structures = atoms = 0
        for batch in batches:
            structures += batch.natoms.numel()
            atoms += int(batch.natoms.sum())
        seconds = time.perf_counter() - first
        return {
            "start_s": first - began,
            "structures_per_s": structures / seconds,
            "atoms_per_s": atoms / seconds,
        }

    def result(self) -> dict[str, Any]:
        """The content of the JSON file, without provenance."""
        rows = []
        for (reader, workers), found in self.rounds.items():
            if not found:
                continue
            base = self.rounds[REFERENCE, workers]
            rows.append(
                {
                    "reader": reader,
                    "workers": workers,
                    **{key: summary([one[key] for one in found]) for key in found[0]},
                    "ratio": summary(
                        [
                            one["structures_per_s"] / other["structures_per_s"]
                            for one, other in zip(found, base)
                        ]
                    ),
                }
            )
        return {
            "what": "reading and collating structures",
            "config_hash": config_hash(READERS),
            "data": {"path": str(self.data), "hash": data_hash(self.data)},
            "batch_size": self.batch_size,
            "batches": self.batches,
            "seeds": [self.seed],
            "units": UNITS,
            "interrupted": self.interrupted,
            "rows": rows,
        }


def workers_needed(rows: list[dict[str, Any]], atoms_per_s: float) -> int | None:
    """Workers of our reader that keep a model of this speed fed; None if one was not measured.

    Computed from the speed of one worker, assuming one core for each.
    """
    for row in rows:
        if row["reader"] == "ndem_lmdb" and row["workers"] == 1:
            return max(1, math.ceil(atoms_per_s / row["atoms_per_s"]["median"]))
    return None


def model_speeds(path: Path) -> dict[str, float]:
    """arm -> largest atoms per s in a result of ``ndem bench step``.

    Raises:
        BenchError: if the file is not such a result.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
        speeds: dict[str, float] = {}
        for setting in settings:
            for arm, found in setting["arms"].items():
                speeds[arm] = max(speeds.get(arm, 0.0), found["atoms_per_s"]["median"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(
            f"{path} is not a result of `ndem bench step --out FILE` "
            f"({type(error).__name__}: {error})."
        ) from error
    return speeds
