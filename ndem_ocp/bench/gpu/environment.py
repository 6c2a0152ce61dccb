"""Versions, the card, and its speed: copies, matrix products, kernel launches."""

from __future__ import annotations

import contextlib
import importlib.metadata as metadata
import os
import time
from typing import Any

from ndem_ocp.bench.checkout import ROOT
from ndem_ocp.bench.gpu.results import Check, Results, precision

PACKAGES = (
    *("torch", "triton", "numpy", "scipy", "torch-geometric", "e3nn", "numba", "fairchem-core"),
    *("ase", "lmdb", "torchmd-net", "ndem-ocp"),
)
LAUNCH = "launch of a kernel and Python's part (add_), us"


def run(check: Check, out: Results) -> None:
    import torch

    from fairchem_kit.provenance import git_commit, hardware
    from ndem_ocp import doctor

    out.put("date", time.strftime("%Y-%m-%d", time.gmtime()))
    out.put("commit", git_commit(ROOT))
    out.put("hardware", hardware())
    out.put("cores allowed", len(os.sched_getaffinity(0)))
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            out.put("versions", name, metadata.version(name))
    if check.cuda:
        out.put("card", _card())
    with out.guarded("copy, TB/s"):
        source = torch.empty(
            1 << (30 if check.cuda else 22), dtype=torch.uint8, device=check.device
        )
        target = torch.empty_like(source)
        seconds = check.seconds(lambda: target.copy_(source))
        out.put("copy, TB/s", 2 * source.numel() / seconds / 1e12)
    _products(check, out)
    with out.guarded(LAUNCH):
        number = torch.zeros(1, device=check.device)
        count = 2000 if check.cuda else 50

        def launches() -> None:
            for _ in range(count):
                number.add_(1)

        out.put(LAUNCH, check.seconds(launches, 3, 1) / count * 1e6)
    with out.guarded("doctor"):
        out.put("doctor", doctor.examine().problems)


def _products(check: Check, out: Results) -> None:
    import torch

    side = 8192 if check.cuda else 256
    for kind in ("fp32", "tf32", "bf16"):
        with out.guarded("matrix products, TFLOP/s", kind), precision(kind):
            dtype = torch.bfloat16 if kind == "bf16" else torch.float32
            a, b = (torch.randn(side, side, device=check.device, dtype=dtype) for _ in range(2))
            seconds = check.seconds(lambda a=a, b=b: a @ b)
            out.put("matrix products, TFLOP/s", kind, 2 * side**3 / seconds / 1e12)


def _card() -> dict[str, Any]:
    import torch

    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "memory, GiB": found.total_memory / 2**30,
        "multiprocessors": found.multi_processor_count,
        "capability": f"{found.major}.{found.minor}",
        "CUDA": torch.version.cuda,
        "cards": torch.cuda.device_count(),
    }
