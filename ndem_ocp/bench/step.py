"""``ndem bench step``: what a training step costs, against upstream's plain one."""

from __future__ import annotations

from typing import Any

import torch

from fairchem_kit.progress import bar
from ndem_ocp.bench.arms import arm_config, possible_arms
from ndem_ocp.bench.batches import READERS, find_data, open_data, read_batches
from ndem_ocp.bench.errors import BenchError
from ndem_ocp.bench.measure import summary
from ndem_ocp.bench.memory import Request, peak_memory
from ndem_ocp.bench.options import Common
from ndem_ocp.bench.rounds import BATCHES, REFERENCE, measure_arms

LARGEST = 4096  # the largest batch size tried by doubling
UNITS = {
    "wall_s": "s per step",
    "process_s": "s of processor time per step, all threads",
    "phases_s": "s per step; graph is part of forward",
    "loading_s": "s per batch, reading and collation in one process",
    "atoms_per_s": "atoms of the data (second views not counted) per s",
    "peak_bytes": "bytes; see ndem_ocp/bench/memory.py",
    "ratio": "to upstream on the same batch in the same round",
    "evaluation_loss": "normalised, first batch, before any step",
}


class StepBench:
    """One model on one data set; a result per batch size."""

    def __init__(self, common: Common, arms: list[str], memory: bool = True) -> None:
        self.common = common
        self.arms, self.notes = possible_arms(arms, common.config)
        self.memory = memory
        self.data = find_data(common.data, common.progress)
        self.dataset = open_data(self.data, key_mapping=self._keys())
        self.settings: list[dict[str, Any]] = []
        self.interrupted = False

    def _keys(self) -> dict[str, str] | None:
        return self.common.config["dataset"]["train"].get("key_mapping")

    def configs(self, batch_size: int) -> dict[str, dict[str, Any]]:
        """arm -> its configuration."""
        common = self.common
        return {
            arm: arm_config(arm, common.config, self.data, batch_size, common.ours)
            for arm in self.arms
        }

    def run(self, batch_sizes: list[int] | None, repeats: int, warmup: int) -> None:
        """Measure; ``settings`` has the results so far, also after Ctrl-C.

        Args:
            batch_sizes: structures per step; None: 1, 2, 4, ... up to memory (CUDA).
            repeats: rounds per batch size.
            warmup: rounds that are not measured.
        """
        try:
            memory = self._memory(batch_sizes)
            sizes = batch_sizes or _common_sizes(memory)
            for batch_size in sizes:
                peaks = {arm: found.get(batch_size) for arm, found in memory.items()}
                try:
                    self._measure(batch_size, repeats, warmup, peaks)
                except torch.cuda.OutOfMemoryError:
                    torch.cuda.empty_cache()
                    self.notes.append(
                        f"A batch of {batch_size} fits alone, but not with all arms in one process."
                    )
                if self.interrupted:
                    break
        except KeyboardInterrupt:
            self.interrupted = True

    def _memory(self, batch_sizes: list[int] | None) -> dict[str, dict[int, Any]]:
        """arm -> batch size -> peak; before this process itself uses the device."""
        if not self.memory and batch_sizes is not None:
            return {}
        cuda = self.common.device.type == "cuda"
        sizes = batch_sizes or [2**n for n in range(LARGEST.bit_length())]
        configs = self.configs(sizes[0])
        # on the CPU a process has one peak; on CUDA one process can measure all sizes
        work = [
            (arm, part) for arm in self.arms for part in ([sizes] if cuda else [[s] for s in sizes])
        ]
        found: dict[str, dict[int, Any]] = {arm: {} for arm in self.arms}
        for arm, part in bar(work, desc="memory", show=self.common.progress, leave=False):
            common = self.common
            request = Request(
                arm, configs[arm], str(common.device), tuple(part), common.seed, common.amp
            )
            for peak in peak_memory(request):
                found[arm][peak["batch_size"]] = peak
        return found

    def _measure(self, batch_size: int, repeats: int, warmup: int, peaks: dict[str, Any]) -> None:
        batches = read_batches(self.dataset, batch_size, BATCHES, self.common.seed)
        found = measure_arms(
            self.configs(batch_size), batches, self.common, repeats, warmup, f"batch {batch_size}"
        )
        self.interrupted = found is None or found.pop("interrupted")
        if found is None:
            return
        _add_memory(found["arms"], peaks)
        loading = self._loading(batch_size)
        self.settings.append({"batch_size": batch_size, **found, "loading_s": loading})

    def _loading(self, batch_size: int) -> dict[str, Any]:
        """Reading the same batches with both readers, in this process, files in the page cache."""
        found = {}
        for reader in READERS:
            dataset = open_data(self.data, reader, self._keys())
            read = [read_batches(dataset, batch_size, BATCHES, self.common.seed) for _ in range(2)]
            found[READERS[reader]] = summary(read[1].loading_s)
        return found

    def result(self) -> dict[str, Any]:
        """The content of the JSON file, without provenance."""
        upstream = arm_config(REFERENCE, self.common.config, self.data, 1)
        return {
            "what": "seconds and memory of one training step",
            **self.common.described(upstream, self.data),
            "units": UNITS,
            "notes": self.notes,
            "interrupted": self.interrupted,
            "settings": self.settings,
        }


def _add_memory(results: dict[str, Any], peaks: dict[str, Any]) -> None:
    base = peaks.get(REFERENCE)
    for arm, peak in peaks.items():
        if peak is None:
            continue
        results[arm]["peak_bytes"] = peak["peak_bytes"]
        results[arm]["steady_bytes"] = peak["steady_bytes"]
        if base and base["peak_bytes"]:
            results[arm]["memory_ratio"] = peak["peak_bytes"] / base["peak_bytes"]


def _common_sizes(memory: dict[str, dict[int, Any]]) -> list[int]:
    """The batch sizes that fit for every arm."""
    sizes = sorted(set.intersection(*(set(found) for found in memory.values())))
    if not sizes:
        raise BenchError("not even one structure fits into the memory of the device.")
    return sizes
