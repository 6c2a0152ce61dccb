"""Profile of one step: its kernels and their time, the longest, and where Python waits."""

from __future__ import annotations

import statistics
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch

from ndem_ocp.bench.checkout import ROOT
from ndem_ocp.bench.gpu.bench import ARMS, Bench
from ndem_ocp.bench.gpu.results import Check, Results, precision

BACKWARD = "autograd::engine::evaluate_function: "


def run(check: Check, out: Results) -> None:
    """Not prepared before its turn, since the largest steps before it need the whole memory."""
    bench = Bench(check, "31M", None)
    kind, size = ("fp32", 1) if check.tiny else ("tf32", 8)
    batches = bench.batches(size)
    out.put("batch", f"{kind}, batch {size}, {batches.atoms[0]} atoms")
    with precision(kind):
        for name in ARMS:
            if check.left() > 6:
                with out.guarded(name):
                    _profile(check, out, bench, name, kind, batches)
        for name in ARMS if check.cuda else ():
            if check.left() > 4:
                with out.guarded(name, "waits"):
                    out.put(name, "waits", _waits(bench, name, kind, batches))


def _profile(check: Check, out: Results, bench: Bench, name: str, kind: str, batches: Any) -> None:
    from torch.profiler import ProfilerActivity, profile

    # always the same batch, number 0
    steps = [bench.step(name, kind, batches, 0) for _ in range(1 if check.tiny else 5)]
    if None in steps:
        out.put(name, {"error": "out of memory"})
        return
    times = [timing for timing, _ in steps[len(steps) // 2 :]]
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if check.cuda else [])]
    check.wait()
    with profile(activities=activities) as recorded:
        bench.step(name, kind, batches, 0)
        check.wait()
    events = list(recorded.events())
    calls = sum(event.name.startswith("aten::") for event in events)
    found: dict[str, Any] = {"ms": 1e3 * statistics.median(each.wall_s for each in times)}
    found["submitted after, ms"] = 1e3 * statistics.median(each.submitted_s for each in times)
    found["operations"] = calls
    if check.cuda:
        kernels = kernels_of(events)
        busy = sum(kernel.time_range.elapsed_us() for kernel in kernels) / 1e3
        found |= {"kernels": len(kernels), "kernel ms": busy, "busy": busy / found["ms"]}
        out.put(name, "step", found)
        out.put(name, "longest kernels", longest(kernels))
        out.put(name, "longest backward functions, ms", _backward(recorded))
    else:
        out.put(name, "step", found)
        out.put(name, "longest operations", _operations(recorded))


def kernels_of(events: Iterable[Any]) -> list[Any]:
    """What ran on the device: kernels, copies, fills. Not the ranges of annotations, such as that
    of the optimizer, which show on the device, too, and contain kernels."""
    events = list(events)
    on_device = [event for event in events if "CPU" not in str(event.device_type)]
    ranges = {e.name for e in events if getattr(e, "is_user_annotation", False)}
    return [event for event in on_device if event.name not in ranges]


def longest(kernels: list[Any], most: int = 25) -> list[dict[str, Any]]:
    """Name, calls and ms of the kernels that took longest in all."""
    calls: Counter[str] = Counter()
    took: Counter[str] = Counter()
    for kernel in kernels:
        calls[kernel.name] += 1
        took[kernel.name] += kernel.time_range.elapsed_us()
    return [
        {"name": name[:120], "calls": calls[name], "ms": microseconds / 1e3}
        for name, microseconds in took.most_common(most)
    ]


def _backward(recorded: Any, most: int = 12) -> dict[str, float]:
    """Device time of everything that a backward function started."""
    took = {
        row.key.removeprefix(BACKWARD): row.device_time_total / 1e3
        for row in recorded.key_averages()
        if row.key.startswith(BACKWARD)
    }
    return dict(Counter(took).most_common(most))


def _operations(recorded: Any, most: int = 25) -> list[dict[str, Any]]:
    rows = sorted(recorded.key_averages(), key=lambda row: -row.self_cpu_time_total)[:most]
    return [
        {"name": row.key[:120], "calls": row.count, "ms": row.self_cpu_time_total / 1e3}
        for row in rows
    ]


def _waits(bench: Bench, name: str, kind: str, batches: Any) -> dict[str, Any]:
    """Where Python waits for the device, from torch's own warnings."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            bench.step(name, kind, batches, 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    lines = Counter(
        f"{_in_package(found.filename)}:{found.lineno}"
        for found in caught
        if "synchroniz" in str(found.message)
    )
    return {"total": sum(lines.values()), "lines": dict(lines.most_common(40))}


def _in_package(path: str) -> str:
    """Without where packages are on this machine."""
    return path.removeprefix(f"{ROOT}/").rpartition("site-packages/")[2]
