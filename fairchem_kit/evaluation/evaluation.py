"""The evaluation of a checkpoint on splits: each rank's part, and the files, written by rank 0."""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path
from typing import Any

from fairchem_kit.data.writer import package_version
from fairchem_kit.evaluation import ranks
from fairchem_kit.evaluation.batches import BatchResult, evaluate, merge
from fairchem_kit.evaluation.finished import FINISHED, Finished, folder_of, forget
from fairchem_kit.evaluation.force_changes import COLUMN, force_change_metrics
from fairchem_kit.evaluation.model import LoadedModel, model_of
from fairchem_kit.evaluation.samples import ATOMS, SAMPLES, Samples, write_samples
from fairchem_kit.evaluation.shared import new_files, progress, readers
from fairchem_kit.evaluation.splits import Split, disagreements, open_split
from fairchem_kit.evaluation.tables import table_of, write_tables
from fairchem_kit.files import writable_folder
from fairchem_kit.inference.weights import EMA, LAST
from fairchem_kit.provenance import config_hash, data_hash, provenance
from fairchem_kit.units.columns import columns_of, data_unit

_WEIGHTS = {EMA: "moving average (EMA)", LAST: "last step's, no moving average"}


def evaluate_splits(
    args: argparse.Namespace, splits: list[Split], out: Path, rank: ranks.Rank
) -> int:
    """Evaluate this rank's batches of all splits; rank 0 writes ``out`` and prints the table.

    Raises:
        EvaluationError: before anything is computed, if the checkpoint or a split cannot be used.
    """
    model = model_of(args, rank)
    batch_size = batch_size_of(model, args.batch_size)
    columns = [*columns_of(model.outputs), *([COLUMN] if args.curvature else [])]
    opened = [(split, open_split(model.config, split, list(model.outputs))) for split in splits]
    if rank.first:
        warn_about(model, splits)
        writable_folder(out)
    with new_files(out, rank.first, (f"*{SAMPLES}", f"*{ATOMS}")) as folder:
        found = {
            split.name: about
            for split, dataset in opened
            if (about := _evaluate(args, (model, batch_size), split, dataset, (out, folder), rank))
        }
    if not rank.first:
        return 0
    about = {
        **origin(),
        **about_model(model),
        "batch_size": batch_size,
        "ranks": rank.count,
        "units": {name: data_unit(name, o) for name, o in model.outputs.items()},
        "columns": {c.key: {"heading": c.heading, "unit": c.unit} for c in columns},
        "splits": found,
        "table": table_of(columns, {name: split["metrics"] for name, split in found.items()}),
    }
    print(write_tables(out, about, caption(model), columns), end="")
    forget(out / FINISHED)
    written = sorted({f"*.{f.split('.', 1)[1]}" for s in found.values() for f in s["files"]})
    print(f"\nwrote {out}/: metrics.json, table.md, table.csv, {', '.join(written)}")
    return 0


def warn_about(model: LoadedModel, splits: list[Split]) -> None:
    """Print in what splits do not match the training data."""
    for split in splits:
        for problem in disagreements(model.config, split):
            print(f"warning: {problem}.", file=sys.stderr)


def finished_batches(
    folder: Path,
    model: LoadedModel,
    split: Split,
    kinds: tuple[type, ...],
    first: bool,
    **settings: Any,
) -> Finished:
    """The batches of a split that the same command has finished before.

    Args:
        folder: where they are kept. kinds: see :class:`Finished`. first: whether this is rank 0,
            which says how many there are. settings: what the results depend on, besides model and
            data.
    """
    files = sorted(split.path.glob("*")) if split.path.is_dir() else [split.path]
    stats = [(file.resolve(), file.stat()) for file in (model.path, *files)]
    identity = {
        **settings,
        "version": package_version(),
        "weights": model.weights,
        "device": model.trainer.device.type,
        "amp": model.trainer.scaler is not None,
        "files": [(str(path), found.st_size, found.st_mtime_ns) for path, found in stats],
    }
    return Finished(folder_of(folder, split.name, identity), kinds, split.name if first else None)


def origin() -> dict[str, Any]:
    """Commit, command, date and hardware."""
    return provenance(Path(__file__).resolve().parents[2])


def batch_size_of(model: LoadedModel, asked: int | None) -> int:
    """Structures per batch: the given number, or that of the run's validation."""
    optim = model.config["optim"]
    return asked or int(optim.get("eval_batch_size") or optim.get("batch_size", 1))


def about_model(model: LoadedModel) -> dict[str, Any]:
    """What identifies the model, for metrics.json."""
    cmd = model.config.get("cmd") or {}
    return {
        "checkpoint": {
            "path": str(model.path),
            "sha256": file_hash(model.path),
            "step": model.step,
            "epoch": model.epoch,
            "weights": model.weights,
            "run": cmd.get("timestamp_id"),
            "identifier": cmd.get("identifier"),
            "config_hash": config_hash(model.config),
        },
        "device": str(model.trainer.device),
        "amp": model.trainer.scaler is not None,
    }


def caption(model: LoadedModel) -> str:
    """The checkpoint and which of its weights are used, as a sentence."""
    step = "step unknown" if model.step is None else f"step {model.step}"
    return f"{model.path}, {step}; weights: {_WEIGHTS[model.weights]}."


def file_hash(path: Path) -> str:
    """First 12 hex digits of a file's SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:12]


def _evaluate(
    args: argparse.Namespace,
    model_and_size: tuple[LoadedModel, int],
    split: Split,
    dataset: Any,
    folders: tuple[Path, Path],
    rank: ranks.Rank,
) -> dict[str, Any] | None:
    """Evaluate a split; rank 0 writes its files and returns its part of metrics.json, other ranks
    None.

    Args:
        folders: of the command, and for the files.
    """
    (model, batch_size), began = model_and_size, time.monotonic()
    out, folder = folders
    kinds = (BatchResult, Samples)
    results = ranks.gather(
        evaluate(
            model,
            dataset,
            batch_size,
            rank=rank.number,
            ranks=rank.count,
            workers=readers(model.config, args.workers, rank.count),
            watch=progress(split.name) if rank.first else None,
            finished=finished_batches(
                out / FINISHED, model, split, kinds, rank.first, batch_size=batch_size
            ),
        )
    )
    if results is None:
        return None
    metrics, samples = merge(results, len(dataset))
    if args.curvature:
        metrics |= force_change_metrics(split, samples)
    seconds = time.monotonic() - began
    files = write_samples(folder, split.name, samples, not args.no_atoms)
    return _about_split(split, samples, metrics, files, seconds)


def _about_split(
    split: Split, samples: Samples, metrics: dict[str, float], files: list[Path], seconds: float
) -> dict[str, Any]:
    return {
        "path": str(split.path),
        "data_hash": data_hash(split.path),
        "structures": len(samples),
        "atoms": int(samples.columns["natoms"].sum()),
        "free_atoms": int(samples.columns["free_atoms"].sum()),
        "seconds": round(seconds, 1),
        "metrics": metrics,
        "files": [path.name for path in files],
    }
