"""``ndem relax``: relax initial structures with a checkpoint and compare with the relaxed ones.

IS2RE and IS2RS by relaxation: fairchem's optimizer and metrics on LMDBs in OC20's IS2RE layout
(``ndem data is2re`` makes them from trajectories). Files written to --out:

    metrics.json, table.md, table.csv   as with ndem eval
    SPLIT.relaxations.csv               one row per structure
    SPLIT.relaxed_positions.npz         final positions, in fairchem's format
    SPLIT.trajectories/SID.traj         with --trajectories
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fairchem_kit.commands.options import describe
from fairchem_kit.evaluation.errors import EvaluationError
from fairchem_kit.evaluation.shared import (
    add_common,
    check_numbers,
    default_out,
    in_ranks,
    new_files,
    progress,
)
from fairchem_kit.files import writable_folder


def configure(parser: argparse.ArgumentParser) -> None:
    """``ndem relax``."""
    describe(parser, __doc__)
    parser.add_argument("checkpoint", type=Path, help="checkpoint.pt or best_checkpoint.pt")
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="DIR",
        help="directories of IS2RE LMDBs, or NAME=DIR",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: relax/RUN-CHECKPOINT")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="maximum number of steps (default: 300)"
    )
    parser.add_argument(
        "--fmax", type=float, metavar="F", help="largest force at convergence, eV/A (default: 0.02)"
    )
    parser.add_argument("--trajectories", action="store_true", help="write every step")
    add_common(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Relax; with --ranks, in separate processes."""
    check_numbers(args)

    from fairchem_kit.checkpoints import read_checkpoint
    from fairchem_kit.evaluation.splits import look_for_relaxations, read_splits

    if args.steps is not None and args.steps < 1:
        raise EvaluationError("--steps must be at least 1.")
    if args.fmax is not None and args.fmax <= 0:
        raise EvaluationError("--fmax must be above 0 eV/A.")
    splits = read_splits(args.data)
    try:
        for split in splits:
            look_for_relaxations(split)
    except EvaluationError:
        read_checkpoint(args.checkpoint, unsafe=args.unsafe)  # what is wrong with it comes first
        raise
    out = args.out or default_out("relax", args.checkpoint)
    return in_ranks(args, lambda rank: _relax(args, splits, out, rank), out)


def _relax(args: argparse.Namespace, splits: list[Any], out: Path, rank: Any) -> int:
    from fairchem_kit.evaluation import relaxation
    from fairchem_kit.evaluation.evaluation import (
        about_model,
        batch_size_of,
        caption,
        finished_batches,
        origin,
        warn_about,
    )
    from fairchem_kit.evaluation.finished import FINISHED, forget
    from fairchem_kit.evaluation.model import model_of, needs_energy_and_forces
    from fairchem_kit.evaluation.ranks import gather
    from fairchem_kit.evaluation.splits import open_relaxations
    from fairchem_kit.evaluation.tables import table_of, write_tables
    from fairchem_kit.provenance import data_hash

    model = model_of(args, rank)
    needs_energy_and_forces(model, "a relaxation")
    settings = settings_of(args, model.config.get("task") or {})
    opened = [(split, open_relaxations(model.config, split)) for split in splits]
    if rank.first:
        warn_about(model, splits)
    writable_folder(out)
    found = {}
    with new_files(out, rank.first) as new:
        for split, dataset in opened:
            folder = out / f"{split.name}.trajectories" if args.trajectories else None
            size = batch_size_of(model, args.batch_size)
            finished = finished_batches(
                out / FINISHED, model, split, (relaxation.RelaxedBatch,), rank.first,
                batch_size=size, settings=settings, trajectories=args.trajectories,
            )  # fmt: skip
            results = gather(
                relaxation.relax(
                    model,
                    dataset,
                    size,
                    relaxation.Settings(*settings, folder),
                    rank=rank.number,
                    ranks=rank.count,
                    watch=progress(split.name) if rank.first else None,
                    finished=finished,
                )
            )
            if results is not None:
                metrics, columns, positions = relaxation.merge(results, len(dataset))
                found[split.name] = {
                    "path": str(split.path),
                    "data_hash": data_hash(split.path),
                    "structures": len(dataset),
                    "metrics": metrics,
                    "files": relaxation.write(new, split.name, columns, positions),
                }
    if not rank.first:
        return 0
    table = table_of(relaxation.COLUMNS, {name: s["metrics"] for name, s in found.items()})
    columns = [c for c in relaxation.COLUMNS if any(c.key in row for row in table.values())]
    about = {
        **origin(),
        **about_model(model),
        "relaxation": dict(zip(("steps", "fmax_eV_per_A", "lbfgs"), settings)),
        "columns": {c.key: {"heading": c.heading, "unit": c.unit} for c in columns},
        "splits": found,
        "table": table,
    }
    print(write_tables(out, about, caption(model), columns), end="")
    forget(out / FINISHED)
    written = ", ".join(f for split in found.values() for f in split["files"])
    print(f"\nwrote {out}/: metrics.json, table.md, table.csv, {written}")
    return 0


def settings_of(args: argparse.Namespace, task: dict[str, Any]) -> tuple[int, float, dict]:
    """Steps, fmax and options of L-BFGS: from the command, the run's task section, or OC20."""
    from fairchem_kit.evaluation import relaxation

    options = {k: v for k, v in (task.get("relax_opt") or {}).items() if k in relaxation.LBFGS}
    return (
        args.steps or int(task.get("relaxation_steps", relaxation.STEPS)),
        args.fmax or float(task.get("relaxation_fmax", relaxation.FMAX)),
        {**relaxation.LBFGS, **options},
    )
