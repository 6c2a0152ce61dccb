"""The options of :mod:`ndem_ocp.bench.arguments`, read and checked."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fairchem_kit.files import write_text
from fairchem_kit.provenance import config_hash, provenance
from fairchem_kit.training.precision import read_precision
from ndem_ocp.bench.batches import data_hash
from ndem_ocp.bench.configs import describe, read_config, without_paths
from ndem_ocp.bench.errors import BenchError
from ndem_ocp.bench.names import DEFAULT_LAYERS, DEFAULT_MODEL

ROOT = Path(__file__).resolve().parents[2]
MAX = "max"


@dataclass(frozen=True)
class Common:
    """Options of every benchmark of a model."""

    name: str  # of the model, as given
    config: dict[str, Any]  # a complete configuration
    data: Path | None
    device: torch.device
    amp: bool
    seed: int
    ours: list[str]
    progress: bool

    def described(self, config: dict[str, Any], data: Path) -> dict[str, Any]:
        """Model, data and machine settings of a result.

        Args:
            config: of the reference arm. data: the LMDBs that were read.
        """
        return {
            "model": describe(config["model"]),
            "model_name": self.name,
            "config_hash": config_hash(without_paths(config)),
            "data": {"path": str(data), "hash": data_hash(data)},
            "seeds": [self.seed],
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "amp": self.amp,
            "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
            "matmul_precision": torch.get_float32_matmul_precision(),
            "ours": self.ours,
        }


def common_of(args: argparse.Namespace) -> Common:
    """Read and check the options of :func:`ndem_ocp.bench.arguments.add_common`.

    Raises:
        BenchError: naming the option and what to do.
    """
    device = device_of(args)
    if args.amp and device.type != "cuda":
        raise BenchError(
            "--amp is CUDA's mixed precision, as in fairchem: leave it out on the CPU."
        )
    precision, _ = read_precision({"matmul_precision": args.matmul_precision})
    torch.set_float32_matmul_precision(precision)
    layers = args.layers
    if args.model is None and layers is None:
        layers = DEFAULT_LAYERS
    name = args.model or DEFAULT_MODEL
    config = read_config(name, layers, args.lmax, args.mmax, args.overrides)
    return Common(
        name, config, args.data, device, args.amp, args.seed, args.ours, not args.no_progress
    )


def device_of(args: argparse.Namespace) -> torch.device:
    """The device of ``--device``, with ``--threads`` set.

    Raises:
        BenchError: for a device that does not exist.
    """
    if args.threads is not None:
        if args.threads < 1:
            raise BenchError("--threads must be at least 1.")
        torch.set_num_threads(args.threads)
    name = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda", "cuda:0"):
        raise BenchError(
            f"--device {name}: give cuda or cpu; CUDA_VISIBLE_DEVICES selects the GPU."
        )
    if name != "cpu" and not torch.cuda.is_available():
        raise BenchError("--device cuda: torch sees no GPU here (`ndem doctor` may show why).")
    return torch.device("cpu" if name == "cpu" else "cuda:0")


def batch_sizes_of(given: list[str], device: torch.device) -> list[int] | None:
    """Structures per step, ascending; None for ``max``.

    Raises:
        BenchError: for anything else.
    """
    if given == [MAX]:
        if device.type != "cuda":
            raise BenchError(
                "--batch-sizes max doubles until the GPU is full: give numbers on the CPU."
            )
        return None
    if not all(size.isdecimal() and int(size) > 0 for size in given):
        raise BenchError(
            f"--batch-sizes {' '.join(given)}: give numbers of structures, or only max."
        )
    return sorted({int(size) for size in given})


def at_least(option: str, value: int, least: int) -> int:
    """Return ``value``, or raise an error that names the option.

    Raises:
        BenchError: if it is too small.
    """
    if value < least:
        raise BenchError(f"{option} must be at least {least}, not {value}.")
    return value


def write_result(path: Path | None, result: dict[str, Any], say: bool = True) -> None:
    """Write the result with its provenance as JSON."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({**provenance(ROOT), **result}, indent=1) + "\n")
    if say:
        print(f"wrote {path}")
