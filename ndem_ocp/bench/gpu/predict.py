"""What a step should take on a GPU, predicted without one:

    python -m ndem_ocp.bench.gpu.predict [--layers 8] [--atoms 624] [--out FILE]

One training step and one inference of each arm run on the CPU, on one small structure, while every
operation is counted (counting.py); what grows with the batch is counted as often as the atoms
ask for (624: eight structures of 78). The time of an operation is the longest of three: that of its
bytes, that of its products, and that of a launch. This says which of two programs is
faster where memory and products limit them; it knows nothing of caches, waits and Python.
Measured ratios (make gpu-check) stand next to the predicted ones in docs/cost.md.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from ndem_ocp.bench.checkout import ROOT, in_checkout
from ndem_ocp.bench.gpu.counting import Count, Operation, counted_kernels
from ndem_ocp.bench.gpu.memory_count import Live, held

# "NVIDIA H100 Tensor Core GPU" data sheet, SXM5, without sparsity: bytes/s of HBM3, products/s.
PEAK = {"bytes": 3.35e12, "fp32": 67e12, "tf32": 494.5e12}
# What large copies and products usually reach of it, and the shortest kernel, as seen back to back.
REACHED = {"bytes": 0.8, "fp32": 0.7, "tf32": 0.5}
LAUNCH_S = 2.5e-6
MEMORY = 80 << 30
ARMS = {
    "upstream": ("upstream", False),
    "plain": ("plain", False),
    "plain, kernels": ("plain", True),
    "ndem": ("ndem", False),
    "ndem, kernels": ("ndem", True),
    "instead": ("instead", False),
    "instead, kernels": ("instead", True),
}


def seconds_of(operations: list[Operation], growth: float, products: str) -> float:
    """Of a batch ``growth`` times as large as the counted one."""
    bandwidth = PEAK["bytes"] * REACHED["bytes"]
    rate = PEAK[products] * REACHED[products]
    total = 0.0
    for one in operations:
        size, flops = one.of(growth)
        total += max(LAUNCH_S, size / bandwidth, flops / rate)
    return total


def deeper(one: list[Operation], two: list[Operation], layers: int) -> list[Operation]:
    """Operations of a model of ``layers`` equal layers, from those with one layer and with two."""
    counts: dict[Operation, int] = defaultdict(int)
    for operations, times in ((two, layers - 1), (one, 2 - layers)):
        for operation in operations:
            counts[operation] += times
    return [operation for operation, times in counts.items() for _ in range(max(times, 0))]


class Steps:
    """Counts a step or an inference of an arm with few layers."""

    def __init__(self, data: Path, model: str, small: dict[str, Any]) -> None:
        from ndem_ocp.bench.batches import open_data, read_batches

        self.data, self.model, self.small = data, model, small
        found = read_batches(open_data(data), 1, 20)
        # 13 is a divisor of no size of a model, which is how Count knows what grows
        chosen = next(number for number, atoms in enumerate(found.atoms) if atoms == 13)
        self.batch, self.atoms = found.batches[chosen], 13
        self.device = torch.device("cpu")

    def count(self, arm: str, layers: int, with_kernels: bool, train: bool) -> list[Operation]:
        from ndem_ocp.bench.clock import Stopwatch

        built = self._arm(arm, layers)
        batch, watch = self.batch.clone(), Stopwatch(self.device)
        with contextlib.ExitStack() as stack:
            stack.enter_context(sizes_of_a_gpu())
            count = Count(self.atoms)
            if with_kernels:
                stack.enter_context(counted_kernels(count))
            stack.enter_context(count)
            if train:
                built.step(batch, 0, watch)
            else:
                stack.enter_context(torch.no_grad())
                built.trainer._unwrapped_model.eval()(batch)
        return count.operations

    def memory(self, arm: str, layers: int, with_kernels: bool) -> Live:
        """Of the second step; the first one makes the optimizer's moments."""
        from ndem_ocp.bench.clock import Stopwatch

        built = self._arm(arm, layers)
        live, watch = Live(self.atoms, held(built.trainer)), Stopwatch(self.device)
        with contextlib.ExitStack() as stack:
            stack.enter_context(sizes_of_a_gpu())
            if with_kernels:
                stack.enter_context(counted_kernels(Count(self.atoms)))
            stack.enter_context(live)
            for number in range(2):
                live.moments.clear()
                built.step(self.batch.clone(), number, watch)
        return live

    def _arm(self, name: str, layers: int) -> Any:
        from ndem_ocp.bench.arms import arm_config, build_arm
        from ndem_ocp.bench.configs import read_config

        config = copy.deepcopy(read_config(self.model, layers))
        config["model"]["backbone"].update(self.small)
        # as on CUDA without being asked: few kernels for all parameters
        config["optim"].setdefault("optimizer_params", {})["foreach"] = True
        if name == "instead":
            name, config["task"]["ndem"] = "ndem", {"target": "first_order"}
        return build_arm(name, arm_config(name, config, self.data, 1), self.device)


@contextlib.contextmanager
def sizes_of_a_gpu() -> Iterator[None]:
    """Compute as on a GPU: in larger pieces, each order as one real product."""
    from ndem_ocp.models.equiformer import autograd, orders
    from ndem_ocp.models.neighbors import pairs

    piece = int(MEMORY * autograd.GPU_PART)
    with (
        mock.patch.object(autograd, "CPU_BYTES", piece),
        mock.patch.object(autograd, "CPU_GRID_BYTES", piece),
        mock.patch.object(orders, "three_products", return_value=False),
        mock.patch.object(pairs, "CPU_PAIRS", pairs.GPU_PAIRS),
    ):
        yield


def predict_memory(steps: Steps, layers: int, growth: float) -> dict[str, Any]:
    """{arm: GiB at the peak of a training step, and its ratio to upstream's}."""
    found: dict[str, Any] = {}
    for label, (arm, with_kernels) in ARMS.items():
        size = steps.memory(arm, layers, with_kernels).peak(growth) / 2**30
        found[label] = {
            "GiB": size,
            "to upstream": size / found.get("upstream", {"GiB": size})["GiB"],
        }
        print(f"memory, {label}: {json.dumps(found[label])}", flush=True)
    return found


def predict(steps: Steps, layers: int, growth: float) -> dict[str, Any]:
    """{"step": {arm: numbers}, "inference": {...}}; seconds and ratios by kind of products."""
    found: dict[str, Any] = {}
    for what, arms in (("step", list(ARMS)), ("inference", list(ARMS)[:3])):
        found[what] = {}
        for label in arms:
            arm, with_kernels = ARMS[label]
            one, two = (steps.count(arm, n, with_kernels, what == "step") for n in (1, 2))
            operations = deeper(one, two, layers)
            sums = [sum(each) for each in zip(*(each.of(growth) for each in operations))]
            row: dict[str, Any] = {"kernels": len(operations)}
            row |= {"GB": sums[0] / 1e9, "TFLOP": sums[1] / 1e12}
            for products in ("tf32", "fp32"):
                seconds = seconds_of(operations, growth, products)
                reference = found[what].get("upstream", {}).get(f"{products}, ms", 1e3 * seconds)
                row[f"{products}, ms"] = 1e3 * seconds
                row[f"{products}, to upstream"] = 1e3 * seconds / reference
            found[what][label] = row
            print(f"{what}, {label}: {json.dumps(row)}", flush=True)
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="31M", help="of ndem bench (31M)")
    parser.add_argument("--layers", type=int, default=8, help="to predict for (8)")
    parser.add_argument("--atoms", type=int, default=624, help="in a batch (624)")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu_predicted.json")
    parser.add_argument("--memory", action="store_true", help="only the memory; times are kept")
    parser.add_argument("--tiny", action="store_true", help="a small model: a trial")
    args = parser.parse_args(argv)
    of = {"model": args.model, "layers": args.layers, "atoms": args.atoms}
    before = json.loads(args.out.read_text()) if args.memory and args.out.exists() else {}
    if before and {key: before[key] for key in of} != of:
        parser.error(f"--memory: {args.out} has the times of another model or batch: give --out.")
    from fairchem.core.common.utils import setup_imports

    import ndem_ocp
    from fairchem_kit.provenance import provenance
    from ndem_ocp.bench.gpu.results import TINY
    from ndem_ocp.testing import small_data

    setup_imports()
    ndem_ocp.register()
    with tempfile.TemporaryDirectory(prefix="gpu-predict-") as work:
        data = small_data(Path(work)) / "train"
        small = {k: v for k, v in TINY.items() if k != "num_layers"} if args.tiny else {}
        steps = Steps(data, args.model, small)
        growth = args.atoms / steps.atoms
        found = {"memory": predict_memory(steps, args.layers, growth)}
        found |= {} if args.memory else predict(steps, args.layers, growth)
    origin = provenance(ROOT)
    found["memory"]["commit"] = origin["commit"]
    result = {
        **(before or origin), "units": "ms on the device; ratios to upstream", **of,
        "device": {"name": "H100 SXM5", "peak": PEAK, "reached": REACHED, "launch_s": LAUNCH_S},
        **found,
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(in_checkout(main))
