"""Repeat all measurements for docs/cost.md, and write its tables and figures:

    python -m ndem_ocp.bench.experiments.cost [--only step inference data scaling] [--quick]
    python -m ndem_ocp.bench.experiments.cost --tables

Runs ``ndem bench`` for each model in the list below, one process after another, on a GPU if there
is one. Results are written to results/bench_*.json (on a GPU ``bench_step_cuda_31M.json`` and so
on), then the tables (``make results``) and docs/images/bench_*.png. After Ctrl-C, complete results
are kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from ndem_ocp.bench.checkout import ROOT, in_checkout
from ndem_ocp.bench.pages.cost import sizes

RESULTS = ROOT / "results"
IMAGES = ROOT / "docs" / "images"

# name -> arguments of ndem bench step; without a name: the default, which `make bench` runs
STEP: dict[str, dict[str, list[str]]] = {
    "cpu": {
        "": [],
        "demo": ["--model", "demo", "--batch-sizes", "4", "32", "--repeats", "15"],
        "31M": ["--model", "31M", "--batch-sizes", "4", "--repeats", "5"],
        "153M": ["--model", "153M", "--layers", "2", "--batch-sizes", "4", "--repeats", "5"],
        "fractions": [
            *("--model", "31M", "--layers", "2", "--batch-sizes", "8", "--no-memory"),
            *("--arms", "plain", "--fractions", "0.125", "0.25", "0.5", "1"),
        ],
    },
    "cuda": {
        "": [],
        "demo": ["--model", "demo", "--batch-sizes", "4", "32", "256"],
        "31M": ["--model", "31M", "--batch-sizes", "max"],
        "153M": ["--model", "153M", "--batch-sizes", "max"],
        "fractions": [
            *("--model", "31M", "--batch-sizes", "32", "--no-memory"),
            *("--arms", "plain", "--fractions", "0.125", "0.25", "0.5", "1"),
        ],
    },
}
INFERENCE = {
    "cpu": ["--batch-sizes", "1", "8"],
    "cuda": ["--model", "31M", "--batch-sizes", "1", "8", "64"],
}
SCALING = {
    "cpu": ["--lmax", "4", "--layers", "2", "--batch-size", "2", "--repeats", "3"],
    "cuda": ["--model", "31M", "--batch-size", "16"],
}
DATA = {"cpu": ["--workers", "0", "1", "2"], "cuda": ["--workers", "0", "1", "2", "4", "8"]}
QUICK = ["--model", "demo", "--layers", "1", "--repeats", "2", "--warmup", "1"]
SHOWN = ("", "demo", "31M", "153M")  # in the figure, from left to right


def commands(device: str, data: list[str], only: list[str], quick: bool) -> list[list[str]]:
    """The command lines, each with an --out."""
    found: list[list[str]] = []
    if "step" in only:
        for name, options in STEP[device].items():
            target = result_file("step", device, name)
            found.append(["step", *options, *(QUICK if quick else []), "--out", str(target)])
    if "inference" in only:
        target = result_file("inference", device)
        extra = QUICK if quick else []
        found.append(["inference", *INFERENCE[device], *extra, "--out", str(target)])
    if "data" in only:
        step = result_file("step", device, "31M")
        extra = ["--batches", "20", "--repeats", "2"] if quick else []
        target = result_file("data", device)
        found.append(["data", *DATA[device], *extra, "--step", str(step), "--out", str(target)])
    if "scaling" in only:
        target = result_file("scaling", device)
        extra = QUICK if quick else []
        found.append(["scaling", *SCALING[device], *extra, "--out", str(target)])
    return [["bench", *command, "--device", device, *data] for command in found]


def result_file(what: str, device: str, name: str = "") -> Path:
    """results/bench_step.json, results/bench_step_cuda_31M.json, ..."""
    parts = ["bench", what, *(["cuda"] if device == "cuda" else []), *([name] if name else [])]
    return RESULTS / f"{'_'.join(parts)}.json"


def draw() -> None:
    """Draw figures of all existing results, preferably of those on a GPU."""
    from ndem_ocp.bench.plots import plot_scaling, plot_step

    for device in ("cuda", "cpu"):
        found = [_read(result_file("step", device, name)) for name in SHOWN]
        settings = [
            (f"{one['model_name']}: {sizes(one['model'])},\nbatch {setting['batch_size']}", setting)
            for one in found
            for setting in one.get("settings", [])[-1:]  # only the largest batch size
        ]
        if settings:
            print("wrote", plot_step(settings, IMAGES / "bench_step.png"))
            break
    for device in ("cuda", "cpu"):
        found = _read(result_file("scaling", device))
        if found.get("axes"):
            print("wrote", plot_scaling(found, IMAGES / "bench_scaling.png"))
            break


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ["step", "inference", "data", "scaling"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--data", help="LMDBs to use instead of the demo's")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="small model, few rounds")
    parser.add_argument("--tables", action="store_true", help="only write tables and figures")
    args = parser.parse_args()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    data = ["--data", args.data] if args.data else []
    if not args.tables:
        for command in commands(device, data, args.only, args.quick):
            print("\n$ ndem", *command, flush=True)
            done = subprocess.run([sys.executable, "-m", "ndem_ocp.cli", *command], check=False)
            if done.returncode:
                return done.returncode
    draw()
    return subprocess.run([sys.executable, "-m", "ndem_ocp.bench.pages.write"]).returncode


if __name__ == "__main__":
    sys.exit(in_checkout(main))
