"""Check this project on a GPU: ten minutes, and one file with results to send:

    make gpu-check                                     or, in any environment with the package:
    python -m ndem_ocp.bench.gpu.check [--seconds 560] [--stages ...] [--device cpu --tiny]

Stages run one after another, each in its own process with a time limit. Every result is written
immediately, so that nothing is lost if a stage fails, exceeds its limit, or the machine is taken
away. No network is needed. The file, results/gpu/GPU-DATE.json, contains versions, the name of the
card, numbers and error messages, but none of your data or paths.

    environment   versions, card, copy bandwidth, matrix products, launch time
    equality      our EquiformerV2 against fairchem's on the device in float64, float32, TF32, bf16
                  and fp16; with and without kernels; the same step twice, as it is and with
                  task.deterministic; two views; edges; device against CPU
    whole_run     the fairchem command: train, kill -9, resume, validate on device and CPU
    step_times    training steps of 31M and 153M for several batch sizes and precisions,
                  and inference: fairchem's, ours with kernels and with torch's code
    kernels       a step's longest kernels, launches, utilization and synchronisations
    second_views  a small model with and without second views, in equal times

For a machine without a network: bundle.sh in this folder, then install.sh there.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

from fairchem_kit.words import counted
from ndem_ocp.bench.checkout import ROOT, in_checkout

MODULE = "ndem_ocp.bench.gpu.check"  # this module, even if it runs as __main__
# stage -> (fraction of the remaining time it may take, seconds that it needs at least)
STAGES = {
    "environment": (0.06, 40),  # torch's first import, from a disk that is not cached
    "equality": (0.22, 15),
    "whole_run": (0.22, 20),
    "step_times": (0.55, 20),
    "kernels": (0.40, 10),
    "second_views": (1.00, 20),
}


def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    if args.stage:
        return run_stage(args)
    from ndem_ocp.bench.gpu.results import Results, read

    with tempfile.TemporaryDirectory(prefix="gpu-check-") as made:
        args.work = (args.work or Path(made)).resolve()
        args.work.mkdir(parents=True, exist_ok=True)
        args.out = (args.out or _default_out(args)).resolve()
        args.out.parent.mkdir(parents=True, exist_ok=True)
        end = time.time() + args.seconds
        runner = Results(args.out, "stages")
        try:
            for name in args.stages:
                runner.put(name, _one_stage(name, args, end))
        except KeyboardInterrupt:
            runner.put("interrupted", True)
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
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.device == "cuda" and not args.stage and not _card():
        parser.error(
            "torch finds no GPU (`ndem doctor` says why). For a dry run: --device cpu --tiny"
        )
    return args


@functools.cache
def _card() -> str:
    """The GPU's name, from another process, so that this one never uses the device."""
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    ).stdout.strip()


def _default_out(args: Namespace) -> Path:
    card = _card() if args.device == "cuda" else "no-gpu"
    name = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    return ROOT / "results" / "gpu" / f"{name}-{time.strftime('%Y-%m-%d-%H%M')}.json"


def _one_stage(name: str, args: Namespace, end: float) -> str:
    """Run a stage; returns how it ended, in words."""
    share, least = STAGES[name]
    left = end - time.time()
    if left < least:
        return f"skipped: only {left:.0f} s were left"
    seconds = left if name == args.stages[-1] else max(share * left, min(least, left))
    print(f"{name}: at most {seconds:.0f} s", flush=True)
    deadline = time.time() + seconds
    command = [sys.executable, "-u", "-m", MODULE, "--stage", name, "--device", args.device]
    command += ["--deadline", str(deadline - 2), "--out", str(args.out), "--work", str(args.work)]
    ended = run_until([*command, *(["--tiny"] if args.tiny else [])], deadline, args.work / "log")
    print(f"{name}: {ended}", flush=True)
    return ended


def run_until(command: list[str], deadline: float, log: Path) -> str:
    """Run a command in its own process group, which is killed at the deadline."""
    quiet = {"WANDB_MODE": "offline", "TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT)}
    quiet["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # for deterministic products
    quiet["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
    begin = time.time()
    with log.open("a") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True,
            env={**os.environ, **quiet},
        )  # fmt: skip
        try:
            code = process.wait(max(0.1, deadline - begin))
        except subprocess.TimeoutExpired:
            return f"stopped at its time limit after {time.time() - begin:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        return f"error: exit status {code} after {time.time() - begin:.0f} s: {' '.join(last)}"
    return f"{time.time() - begin:.0f} s"


def run_stage(args: Namespace) -> int:
    """Run one stage in this process."""
    from ndem_ocp.bench.gpu.results import Check, Results

    check = Check(args.device, args.deadline, args.work, args.tiny)
    importlib.import_module(f"ndem_ocp.bench.gpu.{args.stage}").run(
        check, Results(args.out, args.stage)
    )
    return 0


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
