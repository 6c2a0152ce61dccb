"""Check this project on a GPU: ten minutes, and one file with results to send:

    make gpu-check                                     or, in any environment with the package:
    python -m ndem_ocp.bench.gpu.check [--seconds 560] [--stages ...] [--device cpu --tiny]

Each stage is a process of its own with a time limit. All of them import and build at once; what is
timed then has the device for itself. Every result is written immediately, so that nothing is lost
if a stage fails, exceeds its limit, or the machine is taken away. No network is needed. The file,
results/gpu/GPU-DATE.json, contains versions, the name of the card, numbers and error messages, but
none of your data or paths.

    environment   versions, card, copy bandwidth, matrix products, launch time

    then together, since none of them is timed:
    consistency   our kernels against torch's code in float32, TF32, bf16 and fp16; the same step
                  twice, as it is and with task.deterministic; device against CPU
    equality      our EquiformerV2 against fairchem's on the device: float64, float32, two views,
                  edges, errors of each precision
    whole_run     the fairchem command: train, kill -9, resume, validate on device and CPU

    then one after another:
    step_times    training steps of 31M and 153M for several batch sizes and precisions,
                  and inference: fairchem's, ours with kernels and with torch's code
    kernels       a step's kernels: number, time, the longest; where Python waits
    second_views  a small model with and without second views, in equal times

For a machine without a network: bundle.sh in this folder, then install.sh there.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from fairchem_kit.words import counted
from ndem_ocp.bench.checkout import ROOT, in_checkout
from ndem_ocp.bench.gpu.processes import Stage, run_stage

# stage -> (fraction of the remaining time it may take, seconds that it needs at least)
STAGES = {
    "environment": (0.12, 60),  # torch's first import, from a disk that is not cached
    "consistency": (0.33, 15),
    "equality": (0.33, 15),
    "whole_run": (0.33, 20),
    "step_times": (0.65, 20),
    "kernels": (0.50, 10),
    "second_views": (1.00, 20),
}
TOGETHER = ("consistency", "equality", "whole_run")  # nothing in them is timed


def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    if args.stage:
        return run_stage(args)
    from ndem_ocp.bench.gpu.results import Results, read

    end = time.time() + args.seconds
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as made:
        args.work = (args.work or Path(made)).resolve()
        args.work.mkdir(parents=True, exist_ok=True)
        args.out = (args.out or _default_out(args)).resolve()
        args.out.parent.mkdir(parents=True, exist_ok=True)
        runner = Results(args.out, "stages")
        stages = {name: Stage(name, args) for name in args.stages}
        try:
            for names in _turns(args.stages):
                _run(names, stages, args, end, runner)
                for stage in stages.values():
                    stage.may_prepare()
        except KeyboardInterrupt:
            runner.put("interrupted", True)
        finally:
            for stage in stages.values():
                stage.kill()
    problems = list(_errors(read(args.out)))
    for problem in problems:
        print(f"  {problem}")
    print(f"{counted(len(problems), 'problem')}. File to send: {_shown(args.out)}")
    return 1 if problems else 0


def _arguments(argv: list[str] | None) -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=560.0, help="time for all stages (560)")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="dry run with small models")
    parser.add_argument("--out", type=Path, help="file for the results (results/gpu/GPU-DATE.json)")
    parser.add_argument("--work", type=Path, help="folder for runs (a temporary one)")
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.device == "cuda" and not args.stage and not _card():
        parser.error(
            "torch finds no GPU (`ndem doctor` says why). For a dry run: --device cpu --tiny"
        )
    return args


@functools.cache
def _card() -> str:
    """The GPU's name, from another process, so that this one never uses the device."""
    if shutil.which("nvidia-smi") and not os.environ.get("CUDA_VISIBLE_DEVICES"):
        # without torch's import
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(query, capture_output=True, text=True, timeout=10)
            if not done.returncode and (names := done.stdout.strip().splitlines()):
                return names[0]
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    ).stdout.strip()


def _default_out(args: Namespace) -> Path:
    card = _card() if args.device == "cuda" else "no-gpu"
    name = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    return ROOT / "results" / "gpu" / f"{name}-{time.strftime('%Y-%m-%d-%H%M')}.json"


def _turns(names: list[str]) -> list[list[str]]:
    """The stages in their order; those of TOGETHER, if given, at the first one's turn."""
    together = [name for name in names if name in TOGETHER]
    first = together[:1]
    return [
        together if name in TOGETHER else [name]
        for name in names
        if name in first or name not in TOGETHER
    ]


def _run(names: list[str], stages: dict[str, Stage], args: Namespace, end: float, out: Any) -> None:
    """Give these stages the device and wait for them; how each ended is in the file, in words."""
    left = end - time.time()
    last = args.stages[-1] in names
    started = []
    for name in names:
        share, least = STAGES[name]
        if left < least:
            out.put(name, f"skipped: only {max(left, 0):.0f} s were left")
            stages[name].kill()
            continue
        seconds = left if last else max(share * left, min(least, left))
        print(f"{name}: at most {seconds:.0f} s", flush=True)
        stages[name].begin(time.time() + seconds)
        started.append(stages[name])
    while started:
        for stage in [stage for stage in started if stage.ended()]:
            started.remove(stage)
            out.put(stage.name, stage.outcome)
        time.sleep(0.05)


def _errors(found: object, place: str = "") -> list[str]:
    """All errors in the results, as sentences."""
    if isinstance(found, dict):
        own = [f"{place}: {found['error']}"] if isinstance(found.get("error"), str) else []
        return own + [
            problem for key, value in found.items() for problem in _errors(value, f"{place}/{key}")
        ]
    if isinstance(found, str) and found.startswith("error:"):
        return [f"{place}: {found}"]
    return []


def _shown(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(in_checkout(main))
