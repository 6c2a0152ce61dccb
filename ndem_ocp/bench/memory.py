"""Peak memory of one arm, in a separate process.

On CUDA it is torch.cuda.max_memory_allocated over some steps: weights, gradients, optimizer and
activations. On the CPU it is the growth of the peak resident set over these steps, from a baseline
taken after imports, data, model and optimizer have been created: activations, gradients and the
    optimizer's moments, but not the weights. A process has only one peak, so every arm gets a new
    process.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ndem_ocp.bench.errors import BenchError

STEPS = 2  # in the second the optimizer's moments already exist
MARK = "ndem-bench-memory: "


@dataclass(frozen=True)
class Request:
    """One arm to measure."""

    arm: str
    config: dict[str, Any]  # of arm_config
    device: str
    batch_sizes: tuple[int, ...]  # measured in this order in one process; more than one on CUDA
    seed: int = 0
    amp: bool = False


def peak_memory(request: Request) -> list[dict[str, int]]:
    """[{batch_size, peak_bytes, steady_bytes}], up to the first batch that does not fit.

    ``steady_bytes`` is the memory before the steps: allocated on CUDA, resident on the CPU.

    Raises:
        BenchError: if the process fails; the message ends with its output.
    """
    done = subprocess.run(
        [sys.executable, "-m", "ndem_ocp.bench.memory"],
        input=json.dumps(asdict(request)), capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        if done.returncode in (-2, 130):
            raise KeyboardInterrupt
        tail = "\n".join((done.stderr or done.stdout).splitlines()[-8:])
        raise BenchError(
            f"measuring the memory of {request.arm} ended with {done.returncode} (--no-memory "
            f"leaves it out):\n{tail}"
        )
    return json.loads(lines[-1][len(MARK) :])


def main() -> int:
    """Read a request on stdin, measure, write the answer as the last line of stdout."""
    request = Request(**json.loads(sys.stdin.read()))
    try:
        answer = _measure(request)
    except KeyboardInterrupt:
        return 130
    print(MARK + json.dumps(answer), flush=True)
    return 0


def _measure(request: Request) -> list[dict[str, int]]:
    import ndem_ocp
    from ndem_ocp.bench.arms import build_arm
    from ndem_ocp.bench.batches import open_data

    ndem_ocp.register()  # the names used in configurations
    device = torch.device(request.device)
    source = request.config["dataset"]["train"]
    dataset = open_data(Path(source["src"]), key_mapping=source.get("key_mapping"))
    arm = build_arm(request.arm, request.config, device, request.amp, request.seed)
    answer = []
    for batch_size in request.batch_sizes:
        if batch_size > len(dataset):
            break
        try:
            answer.append(_peak_of_steps(arm, dataset, batch_size, request.seed))
        except torch.cuda.OutOfMemoryError:
            break
    return answer


def _peak_of_steps(arm: Any, dataset: Any, batch_size: int, seed: int) -> dict[str, int]:
    from ndem_ocp.bench.batches import read_batches
    from ndem_ocp.bench.clock import Stopwatch

    batches = read_batches(dataset, batch_size, 1, seed)
    steady = _steady(arm.device)
    for number in range(STEPS):
        arm.step(batches.on(0, arm.device), number, Stopwatch(arm.device))
    if arm.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(arm.device)
    else:
        peak = max(0, _peak_resident() - steady)
    return {"batch_size": batch_size, "peak_bytes": peak, "steady_bytes": steady}


def _steady(device: torch.device) -> int:
    """Bytes in use now; also resets the peak to it if the system supports that."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak
        return 1024 * _status("VmRSS")
    except (OSError, KeyError):
        return _peak_resident()


def _peak_resident() -> int:
    try:
        return 1024 * _status("VmHWM")
    except (OSError, KeyError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak  # kilobytes but on macOS


def _status(key: str) -> int:
    """A number of /proc/self/status, in kB.

    Raises:
        OSError, KeyError: if there is no such file or line.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise KeyError(key)


if __name__ == "__main__":
    sys.exit(main())
