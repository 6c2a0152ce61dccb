"""Profile of one step: longest kernels, launches, utilization, synchronisations."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import torch

from ndem_ocp.bench.gpu.results import Check, Results, precision
from ndem_ocp.bench.gpu.step_times import Bench


def run(check: Check, out: Results) -> None:
    from torch.profiler import ProfilerActivity, profile

    from ndem_ocp.bench.clock import Stopwatch

    bench = Bench(check, "31M", None)
    batches, watch = bench.batches(1 if check.tiny else 4), Stopwatch(check.device)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if check.cuda else [])]
    for name in ("ndem", "plain", "upstream"):
        if check.left() < 6:
            return
        arm = bench.arms[name]
        with out.guarded(name), precision("tf32" if check.cuda else "fp32"):
            for number in range(1 if check.tiny else 3):
                wall = arm.step(batches.on(0, check.device), number, watch).wall_s
            if check.cuda:
                out.put(
                    name,
                    "waits",
                    _waits(lambda a=arm: a.step(batches.on(0, check.device), 3, watch)),
                )
            batch = batches.on(0, check.device)
            check.wait()
            with profile(activities=kinds) as recorded:
                arm.step(batch, 4, watch)
                check.wait()
            out.put(name, "step", _summary(recorded, wall, check.cuda))
            key = "self_cuda_time_total" if check.cuda else "self_cpu_time_total"
            out.put(name, "longest", _longest(recorded, key))


def _waits(step: Any) -> dict[str, Any]:
    """Where Python waits for the device, from torch's own warnings."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    lines = Counter(
        f"{found.filename.rpartition('site-packages/')[2].rpartition('/ndem_ocp/')[2]}:{found.lineno}"
        for found in caught
        if "synchroniz" in str(found.message)
    )
    return {"total": sum(lines.values()), "lines": dict(lines.most_common(40))}


def _summary(recorded: Any, wall: float, cuda: bool) -> dict[str, Any]:
    events = [e for e in recorded.events() if "CUDA" in str(e.device_type)] if cuda else []
    busy = sum(event.time_range.elapsed_us() for event in events) / 1e6
    calls = sum(each.count for each in recorded.key_averages() if each.key.startswith("aten::"))
    found: dict[str, Any] = {"ms": 1e3 * wall, "operations": calls}
    if cuda:
        found |= {"kernels": len(events), "kernel ms": 1e3 * busy, "busy": busy / wall}
    return found


def _longest(recorded: Any, key: str) -> list[dict[str, Any]]:
    """Name, calls and ms of the 25 longest kernels or operations."""
    rows = recorded.key_averages()
    own = "self_device_time_total" if "cuda" in key else "self_cpu_time_total"
    rows = sorted(rows, key=lambda row: -getattr(row, own, 0))[:25]
    return [
        {"name": row.key[:120], "calls": row.count, "ms": getattr(row, own, 0) / 1e3}
        for row in rows
    ]
