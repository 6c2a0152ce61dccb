"""Arguments that the commands of ``ndem bench`` share; ndem_ocp.bench.options reads them."""

from __future__ import annotations

import argparse
from pathlib import Path

from ndem_ocp.bench.names import DEFAULT_LAYERS, DEFAULT_MODEL, MODELS
from ndem_ocp.commands.options import add_amp, add_no_progress, add_seed


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add what :func:`ndem_ocp.bench.options.common_of` reads."""
    parser.add_argument(
        "--model",
        help=f"{', '.join(MODELS)}, or the path of a configuration (default: {DEFAULT_MODEL} with "
        f"--layers {DEFAULT_LAYERS})",
    )
    parser.add_argument("--layers", type=int, metavar="N", help="so many layers instead")
    parser.add_argument("--lmax", type=int, metavar="L", help="another largest degree")
    parser.add_argument("--mmax", type=int, metavar="M", help="another largest order")
    parser.add_argument(
        "--ours", action="append", default=[], metavar="KEY=VALUE",
        help="a setting of the model section for our EquiformerV2 alone, such as "
        "backbone.KEY=VALUE; may be repeated",
    )  # fmt: skip
    add_machine(parser)
    add_amp(parser)
    parser.add_argument(
        "--matmul-precision", default="highest", metavar="P",
        help="of float32 products, in all arms: highest (default), high (TF32) or medium, as "
        "task.matmul_precision",
    )  # fmt: skip
    parser.epilog = "After --, --key=value overrides of the configuration, as fairchem has them."
    parser.set_defaults(overrides=[])


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Data, device and where the result goes."""
    parser.add_argument("--data", type=Path, help="LMDBs (default: the demo's, made if absent)")
    parser.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch on the CPU")
    add_seed(parser, "weights, batches and noise")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON")
    add_no_progress(parser)
