"""Arms of ndem bench step on the device, for the stages that time them."""

from __future__ import annotations

import contextlib
import gc
from typing import Any

import torch

from ndem_ocp.bench.gpu.results import TINY, Check, precision

ARMS = ("upstream", "plain", "ndem")
INSTEAD = "instead"  # displaced structures in place of some of the batch's


class Bench:
    """Arms, each built when it is first needed, and supercells of about 80 atoms (14 in a dry
    run)."""

    def __init__(self, check: Check, model: str, layers: int | None) -> None:
        from ndem_ocp.bench.batches import open_data
        from ndem_ocp.bench.clock import Stopwatch
        from ndem_ocp.bench.configs import read_config

        self.check, self.data = check, check.data() / "train"
        self.config = read_config(model, layers)
        if check.tiny:
            self.config["model"]["backbone"].update(TINY)
        self.records, self.repeat = open_data(self.data), (1, 1) if check.tiny else (3, 2)
        self.watch = Stopwatch(check.device)
        self.too_large: dict[tuple[str, str], int] = {}  # {(label, kind): batch without memory}
        # bf16 needs no scaler, but an arm with a scaler uses autocast
        self.scalers: dict[str, Any] = {}
        if check.cuda:
            self.scalers["fp16"] = torch.amp.GradScaler("cuda")
            self.scalers["bf16"] = torch.amp.GradScaler("cuda", enabled=False)
        self._arms: dict[str, Any] = {}

    def arm(self, name: str) -> Any:
        """With the weights of upstream's, which is built first."""
        from ndem_ocp.bench.arms import arm_config, build_arm, share_weights
        from ndem_ocp.models.equiformer.constants import grids_once

        if name not in self._arms:
            # no noise head: the main heads of INSTEAD are those of plain
            source = {"upstream": None, INSTEAD: "plain"}.get(name, "upstream")
            arms = [self.arm(source)] if source else []
            config, kind = self.config, name
            if name == INSTEAD:
                config, kind = {**config, "task": {"ndem": {"target": "first_order"}}}, "ndem"
            with grids_once():
                made = build_arm(name, arm_config(kind, config, self.data, 4), self.check.device)
            share_weights([*arms, made])
            self._arms[name] = made
        return self._arms[name]

    def batches(self, size: int) -> Any:
        """Three batches of ``size`` structures."""
        from ndem_ocp.bench.batches import read_batches

        return read_batches(self.records, size, 3, repeat=self.repeat)

    def warm_up(self, kind: str) -> None:
        """Two steps of each arm in one precision, which compile its kernels."""
        batches = self.batches(4)
        with precision(kind):
            for number in range(2):
                for name in ARMS:
                    self.step(name, kind, batches, number)

    def step(self, label: str, kind: str, batches: Any, number: int) -> Any:
        """(timing, memory) of one step; None if there was too little of it.

        Memory is {"peak, GiB": ..., "allocations repeated": ...}: how often torch had to free what
        it keeps and ask again, which takes long.

        Args:
            label: of an arm, or "ARM, torch's code". kind: of products and of autocast.
        """
        from ndem_ocp.models.equiformer.kernels import without_kernels

        name, _, with_torch = label.partition(", ")
        arm = self.arm(name)
        arm.trainer.scaler = self.scalers.get(kind)
        before = self._memory(begin=True)
        try:
            with without_kernels() if with_torch else contextlib.nullcontext():
                timing = arm.step(batches.on(number, self.check.device), number, self.watch)
        except torch.cuda.OutOfMemoryError:
            timing = None
        if timing is None:  # not before the exception is gone, and with it the step's tensors
            arm.trainer.optimizer.zero_grad(set_to_none=True)
            gc.collect()
            torch.cuda.empty_cache()
            return None
        memory = self._memory()
        for key, value in before.items():
            memory[key] -= value
        return timing, memory

    def _memory(self, begin: bool = False) -> dict[str, float]:
        if not self.check.cuda:
            return {}
        if begin:
            torch.cuda.reset_peak_memory_stats()
        return {
            "peak, GiB": 0.0 if begin else torch.cuda.max_memory_allocated() / 2**30,
            "allocations repeated": torch.cuda.memory_stats().get("num_alloc_retries", 0),
        }

    def autocast(self, kind: str) -> Any:
        """As the trainers use it for bf16 and fp16."""
        return torch.autocast("cuda", enabled=kind in self.scalers)
