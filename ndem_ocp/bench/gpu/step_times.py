"""Time and memory of training steps and inference, by model, precision and batch size."""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import Any

import torch

from ndem_ocp.bench.gpu.results import TINY, Check, Results, precision
from ndem_ocp.models.equiformer.kernels import without_kernels

ARMS = ["upstream", "plain", "ndem"]
INSTEAD = "instead"  # displaced structures in place of some of the batch's
# of the same models, timed beside them with one precision
MORE = (INSTEAD, "plain, torch's code", "ndem, torch's code")


def run(check: Check, out: Results) -> None:
    bench = Bench(check, "31M", None)
    kinds = ("tf32", "fp32", "bf16", "fp16") if check.cuda else ("fp32",)
    sizes = (1,) if check.tiny else (4, 1, 8, 2, 16, 32)
    whole = check.left()
    for size in sizes:  # the most informative first
        for kind in kinds:
            if check.left() > 0.35 * whole:
                more = MORE if kind == kinds[0] else ()
                with out.guarded("31M", f"{kind}, batch {size}"):
                    found = bench.measure(kind, size, (0.06 if more else 0.03) * whole, more)
                    out.put("31M", f"{kind}, batch {size}", found)
    for kind in kinds[:2]:
        for size in (1,) if check.tiny else (1, 8, 32):
            if check.left() > 0.25 * whole:
                with out.guarded("inference", f"{kind}, batch {size}"):
                    out.put("inference", f"{kind}, batch {size}", bench.inference(kind, size))
    del bench
    if check.tiny:
        return
    if check.cuda:
        torch.cuda.empty_cache()
    with out.guarded("153M, 4 layers"):
        bench = Bench(check, "153M", 4)
        for kind in kinds:
            if check.left() > 4:
                found = bench.measure(kind, 4, 0.06 * whole)
                out.put("153M, 4 layers", f"{kind}, batch 4", found)


class Bench:
    """Arms, built once, on supercells of about 80 atoms (14 in a dry run)."""

    def __init__(self, check: Check, model: str, layers: int | None) -> None:
        from fairchem.core.common.utils import setup_imports

        import ndem_ocp
        from ndem_ocp.bench.arms import arm_config, build_arm, share_weights
        from ndem_ocp.bench.batches import open_data
        from ndem_ocp.bench.configs import read_config

        setup_imports()
        ndem_ocp.register()
        self.check, data = check, check.data() / "train"
        config = read_config(model, layers)
        if check.tiny:
            config["model"]["backbone"].update(TINY)
        self.records, self.repeat = open_data(data), (1, 1) if check.tiny else (3, 2)
        self.arms = {
            name: build_arm(name, arm_config(name, config, data, 4), check.device) for name in ARMS
        }
        share_weights(list(self.arms.values()))
        # no noise head: its main heads are those of plain
        other = {**config, "task": {"ndem": {"target": "first_order"}}}
        self.arms[INSTEAD] = build_arm(INSTEAD, arm_config("ndem", other, data, 4), check.device)
        share_weights([self.arms["plain"], self.arms[INSTEAD]])
        self.too_large = dict.fromkeys((*ARMS, *MORE), 1 << 30)
        self.scaler = torch.amp.GradScaler("cuda") if check.cuda else None

    def batches(self, size: int) -> Any:
        from ndem_ocp.bench.batches import read_batches

        return read_batches(self.records, size, 3, repeat=self.repeat)

    def measure(
        self, kind: str, size: int, seconds: float, more: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """Alternating rounds for a number of seconds: medians per arm, ratios within rounds."""
        from ndem_ocp.bench.clock import Stopwatch

        batches, watch = self.batches(size), Stopwatch(self.check.device)
        arms = [name for name in (*ARMS, *more) if size < self.too_large[name]]
        timings: dict[str, list[Any]] = {name: [] for name in arms}
        peaks: dict[str, float] = {}
        number, (warmup, most) = 0, (0, 1) if self.check.tiny else (2, 14)
        end = time.time() + min(seconds, self.check.left() - 1)
        with precision(kind):
            while number <= warmup or (number < most and time.time() < end):
                for name in [name for name in arms if name in timings]:
                    timing = self._step(name, kind, batches, number, watch, peaks)
                    if timing is None:  # out of memory
                        timings.pop(name)
                        self.too_large[name] = size
                    elif number >= warmup:
                        timings[name].append(timing)
                number += 1
        return self._summary(timings, batches, peaks)

    def _step(
        self, label: str, kind: str, batches: Any, number: int, watch: Any, peaks: dict[str, float]
    ) -> Any:
        name, _, with_torch = label.partition(", ")
        arm = self.arms[name]
        # bf16 needs no scaler, but an arm with a scaler uses autocast
        scaler = {"fp16": self.scaler, "bf16": torch.GradScaler("cuda", enabled=False)}
        arm.trainer.scaler = scaler.get(kind)
        if self.check.cuda:
            torch.cuda.reset_peak_memory_stats()
        try:
            with without_kernels() if with_torch else contextlib.nullcontext():
                timing = arm.step(batches.on(number, self.check.device), number, watch)
        except torch.cuda.OutOfMemoryError:
            arm.trainer.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            return None
        if self.check.cuda:
            peaks[label] = max(peaks.get(label, 0.0), torch.cuda.max_memory_allocated() / 2**30)
        return timing

    def _summary(
        self, timings: dict[str, list[Any]], batches: Any, peaks: dict[str, float]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {"atoms": batches.atoms}
        reference = timings.get("upstream")
        for name, each in timings.items():
            wall = [timing.wall_s for timing in each]
            found[name] = {
                "ms": 1e3 * statistics.median(wall),
                "rounds": len(wall),
                "processor ms": 1e3 * statistics.median(timing.process_s for timing in each),
                "phases, ms": {
                    phase: 1e3 * statistics.median(timing.phases_s.get(phase, 0) for timing in each)
                    for phase in each[0].phases_s
                },
                "edges": self.arms[name.partition(", ")[0]].edges,
                "peak, GiB": peaks.get(name),
            }
            if reference:
                ratios = [a / b.wall_s for a, b in zip(wall, reference)]
                found[name]["to upstream"] = statistics.median(ratios)
        return found

    def inference(self, kind: str, size: int) -> dict[str, Any]:
        """Time of energies and forces, without gradients, in ms."""
        batches, check = self.batches(size), self.check
        repeats, warmup = (1, 0) if check.tiny else (10, 3)
        found: dict[str, Any] = {"atoms": batches.atoms[0]}
        with precision(kind), torch.no_grad():
            for name in ("upstream", "plain", "plain, torch's code"):
                model = self.arms[name.partition(", ")[0]].trainer._unwrapped_model.eval()
                with without_kernels() if "," in name else contextlib.nullcontext():
                    found[name] = 1e3 * check.seconds(
                        lambda model=model: model(batches.on(0, check.device)), repeats, warmup
                    )
        return {**found, "to upstream": found["plain"] / found["upstream"]}
