"""Arguments shared by the commands of ``ndem bench``; ndem_ocp.bench.options reads them."""

from __future__ import annotations

import argparse
from pathlib import Path

from fairchem_kit.commands.options import add_amp, add_no_progress, add_seed
from ndem_ocp.bench.names import DEFAULT_LAYERS, DEFAULT_MODEL, MODELS


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options read by :func:`ndem_ocp.bench.options.common_of`."""
    parser.add_argument(
        "--model",
        help=f"{', '.join(MODELS)}, or the path of a configuration (default: {DEFAULT_MODEL} with "
        f"--layers {DEFAULT_LAYERS})",
    )
    parser.add_argument("--layers", type=int, metavar="N", help="change the number of layers")
    parser.add_argument("--lmax", type=int, metavar="L", help="change the largest degree")
    parser.add_argument("--mmax", type=int, metavar="M", help="change the largest order")
    parser.add_argument(
        "--ours", action="append", default=[], metavar="KEY=VALUE",
        help="a setting of the model section for our EquiformerV2 only, such as "
        "backbone.KEY=VALUE; may be repeated",
    )  # fmt: skip
    add_machine(parser)
    add_amp(parser)
    parser.add_argument(
        "--matmul-precision", default="highest", metavar="P",
        help="precision of float32 products in all arms: highest (default), high (TF32) or "
             "medium, as "
        "task.matmul_precision",
    )  # fmt: skip
    parser.epilog = "After --: --key=value overrides of the configuration, as in fairchem."
    parser.set_defaults(overrides=[])


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add options for data, device and result."""
    parser.add_argument(
        "--data", type=Path, help="LMDBs (default: those of the demo, made if absent)"
    )
    parser.add_argument("--device", help="cuda or cpu (default: cuda if available)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch on the CPU")
    add_seed(parser, "weights, batches and noise")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the result to this JSON file"
    )
    add_no_progress(parser)
