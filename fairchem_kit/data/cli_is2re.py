"""``ndem data is2re`` and ``ndem data demo-relaxations``."""

from __future__ import annotations

import argparse
import sys

from fairchem_kit.commands.options import (
    add_no_progress,
    add_overwrite,
    add_seed,
    add_workers,
    at_least,
)


def configure_is2re(parser: argparse.ArgumentParser) -> None:
    """``ndem data is2re``."""
    parser.description = (
        "One record per trajectory: the first frame is the initial structure, the last one the "
        "relaxed structure and energy."
    )
    add = parser.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="files, directories or glob patterns")
    add("--out", required=True, metavar="DIR", help="writes DIR/data.0000.lmdb")
    add(
        "--energy-reference",
        default="none",
        metavar="REF",
        help="that of the model's training data: none, last-frame, or their linear_reference.npz "
        "(default: none)",
    )
    add(
        "--tags",
        choices=("auto", "keep"),
        default="auto",
        help="auto: derive tags that are not OC20's",
    )
    add("--energy-key", metavar="KEY", help="key of the energy (eV) in atoms.info")
    add(
        "--forces-key",
        metavar="KEY",
        help="key of the forces (eV/A) in atoms.arrays (database: in data)",
    )
    add(
        "--system-key",
        metavar="KEY",
        help="key in atoms.info (or database column) of the relaxation",
    )
    add("--skip-bad", action="store_true", help="leave out and list files that are not relaxations")
    add_overwrite(parser)
    add_workers(parser)
    add_no_progress(parser)
    parser.set_defaults(func=_run_is2re)


def configure_demo_relaxations(parser: argparse.ArgumentParser) -> None:
    """``ndem data demo-relaxations``."""
    parser.description = "New systems of the demo's metals and adsorbates, relaxed to 0.02 eV/A."
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="writes DIR/relaxation_0000_....traj")
    add("--systems", type=at_least(1), default=8, metavar="N", help="default: 8")
    add("--size", choices=("small", "default"), default="default", help="size of the demo's data")
    add_seed(parser, "the systems", default=1000)
    add_workers(parser)
    add_no_progress(parser)
    parser.set_defaults(func=_run_demo)


def _run_is2re(args: argparse.Namespace) -> int:
    from .sources import expand_sources

    sources = expand_sources(args.sources)  # before torch is imported, in case they are missing

    from .frames import LabelOptions
    from .is2re import convert_relaxations
    from .relaxation_files import RISE

    options = LabelOptions(args.energy_key, args.forces_key, args.system_key, args.tags)
    entry = convert_relaxations(
        sources,
        args.out,
        energy_reference=args.energy_reference,
        options=options,
        skip_bad=args.skip_bad,
        overwrite=args.overwrite,
    )
    print(
        f"wrote {entry['records']} initial and relaxed structures ({entry['atoms']} atoms) to "
        f"{args.out}; energy reference: {entry['energy_reference']}."
    )
    if entry["bad"]:
        shown = "\n  ".join(entry["bad"])
        print(f"left out {len(entry['bad'])}:\n  {shown}", file=sys.stderr)
    if entry["rising"]:
        print(
            f"{entry['rising']} of them end more than {RISE} eV above their start (rise_eV in "
            "systems.json): is the order of their frames right, and is each a single relaxation?",
            file=sys.stderr,
        )
    if entry["unconverged"]:
        print(
            f"{entry['unconverged']} of them end with a force above 0.05 eV/A on a free atom "
            f"(systems.json lists all): these are not relaxed.",
            file=sys.stderr,
        )
    return 0


def _run_demo(args: argparse.Namespace) -> int:
    from .demo_relaxations import make_relaxations

    sources = make_relaxations(args.out, args.systems, args.size, args.seed)
    print(f"wrote {len(sources)} trajectories to {args.out}")
    return 0
