"""``ndem submission``: write or check predictions on the test splits for OC20's S2EF leaderboard.

    ndem submission write CHECKPOINT --id DIR --ood-ads DIR --ood-cat DIR --ood-both DIR --out FILE
    ndem submission check FILE [--id DIR --ood-ads DIR --ood-cat DIR --ood-both DIR]

``fairchem_kit.evaluation.submission`` describes the file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.commands.options import describe
from fairchem_kit.evaluation.errors import EvaluationError
from fairchem_kit.evaluation.shared import add_common, check_numbers, in_ranks, progress, readers
from fairchem_kit.evaluation.submission import (
    FAIRCHEM,
    LEADERBOARD,
    SPLITS,
    Expected,
    PredictedBatch,
    Predictions,
    arrays_of,
    join,
    problems_of_file,
)
from fairchem_kit.files import existing, existing_file, replacing, writable_folder
from fairchem_kit.progress import bar
from fairchem_kit.words import counted


def configure_write(parser: argparse.ArgumentParser) -> None:
    """``ndem submission write``."""
    describe(parser, __doc__)
    parser.add_argument("checkpoint", type=Path)
    _add_splits(parser, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npz")
    parser.add_argument("--float16", action="store_true", help="forces in half precision")
    add_common(parser)
    parser.set_defaults(func=run_write)


def configure_check(parser: argparse.ArgumentParser) -> None:
    """``ndem submission check``."""
    describe(parser, __doc__)
    parser.add_argument("file", type=Path)
    _add_splits(parser, required=False)
    parser.set_defaults(func=run_check)


def _add_splits(parser: argparse.ArgumentParser, required: bool) -> None:
    for name in SPLITS:
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=Path,
            required=required,
            metavar="DIR",
            help=f"LMDBs of the test split {name}",
        )
    parser.add_argument(
        "--layout",
        choices=(FAIRCHEM, LEADERBOARD),
        default=FAIRCHEM,
        help="fairchem (default): free atoms, sorted by id; leaderboard: all atoms",
    )


def run_write(args: argparse.Namespace) -> int:
    """Predict and write; with --ranks, in separate processes."""
    check_numbers(args)
    if args.out.suffix != ".npz":
        raise EvaluationError(f"--out {args.out}: the file name must end in .npz.")
    missing = [f"{path} (--{name})" for name, path in _given(args).items() if not path.exists()]
    if missing:
        raise EvaluationError(f"no such file or directory: {', '.join(missing)}.")
    writable_folder(args.out.parent)
    return in_ranks(args, lambda rank: _write(args, rank), args.out.parent)


def run_check(args: argparse.Namespace) -> int:
    """Print all faults; returns 0 if there are none, else 1."""
    existing_file(args.file, EvaluationError)
    for path in _given(args).values():
        existing(path, EvaluationError)
    expected = {name: expected_of(path, args.layout) for name, path in _given(args).items()}
    problems = problems_of_file(args.file, expected, args.layout)
    for problem in problems:
        print(problem)
    if problems:
        return 1
    compared = f" and fits the data of {', '.join(expected)}" if expected else ""
    print(f"{args.file} has the layout {args.layout}{compared}.")
    return 0


def _given(args: argparse.Namespace) -> dict[str, Path]:
    found = {name: getattr(args, name) for name in SPLITS}
    return {name: path for name, path in found.items() if path is not None}


def _write(args: argparse.Namespace, rank: Any) -> int:
    from fairchem_kit.evaluation.evaluation import batch_size_of, caption, finished_batches
    from fairchem_kit.evaluation.finished import FINISHED, forget
    from fairchem_kit.evaluation.model import model_of, needs_energy_and_forces
    from fairchem_kit.evaluation.ranks import gather
    from fairchem_kit.evaluation.splits import Split, open_split
    from fairchem_kit.units.columns import data_unit

    model = model_of(args, rank)
    needs_energy_and_forces(model, "the leaderboard's task S2EF")
    if model.per_ev() != 1:
        raise EvaluationError(
            f"{model.path} predicts in {data_unit('energy', model.outputs['energy'])}; the "
            "leaderboard takes eV and eV/A."
        )
    arrays: dict[str, np.ndarray] = {}
    expected = {}
    splits = [Split(name, path) for name, path in _given(args).items()]
    opened = [(split, open_split(model.config, split)) for split in splits]
    unfinished = args.out.with_name(f"{args.out.name}{FINISHED}")
    for split, dataset in opened:
        name = split.name
        watch = progress(name) if rank.first else None
        workers = readers(model.config, args.workers, rank.count)
        size = batch_size_of(model, args.batch_size)
        finished = finished_batches(
            unfinished, model, split, (PredictedBatch, Predictions), rank.first,
            batch_size=size, layout=args.layout,
        )  # fmt: skip
        parts = gather(predict(model, dataset, size, args.layout, rank, workers=workers,
                               watch=watch, finished=finished))  # fmt: skip
        if parts is None:
            continue
        parts = sorted(parts, key=lambda part: part.number)
        predictions = join([part.predictions for part in parts])
        if len(predictions.ids) != len(dataset):
            raise EvaluationError(
                f"{name}: {len(predictions.ids)} of {counted(len(dataset), 'structure')}."
            )
        arrays |= arrays_of(name, predictions, args.layout, args.float16)
        counts = zip(predictions.ids.tolist(), predictions.counts.tolist())
        expected[name] = Expected(dict(counts))
    if not rank.first:
        return 0
    with replacing(args.out) as temporary:
        np.savez_compressed(temporary, **arrays)
        problems = problems_of_file(temporary, expected, args.layout)
        if problems:
            raise EvaluationError(f"{args.out} was not written: {'; '.join(problems)}.")
    forget(unfinished)
    print(f"{caption(model)}\nwrote {args.out} in the layout {args.layout}: "
          + ", ".join(f"{name} {len(arrays[f'{name}_ids'])}" for name in SPLITS)
          + " structures; checked.")  # fmt: skip
    return 0


def predict(
    model: Any,
    dataset: Any,
    batch_size: int,
    layout: str,
    rank: Any,
    *,
    workers: int = 0,
    watch: Any = None,
    finished: Any = None,
) -> list[PredictedBatch]:
    """Predict this rank's batches of a split. Needs no labels.

    ``finished`` keeps results for a command that is stopped, and has those of an earlier one.
    """
    from fairchem_kit.evaluation.batches import load_batches, numbers_of_batches
    from fairchem_kit.evaluation.finished import Finished

    numbers = numbers_of_batches(len(dataset), batch_size, rank.number, rank.count)
    finished = finished or Finished()
    with finished.missing(numbers) as missing:
        batches = load_batches(model, dataset, batch_size, missing, workers)
        for number, batch in watch(batches, len(missing)) if watch else batches:
            _, raw = model.predict(batch, seed=number)
            rows = _rows(batch.fixed, batch.natoms, layout)
            predictions = Predictions(
                ids=np.array(_ids(batch), dtype=object),
                energy=raw["energy"].reshape(-1).cpu().numpy(),
                forces=raw["forces"].reshape(-1, 3).cpu().numpy()[np.concatenate(rows)],
                counts=np.array([int(row.sum()) for row in rows]),
            )
            finished.add(PredictedBatch(number, predictions))
    return finished.of(numbers)


def _rows(fixed: Any, natoms: Any, layout: str) -> list[np.ndarray]:
    """For each structure, the atoms whose forces are submitted: (n,) bool."""
    free = fixed.reshape(-1).cpu().numpy() == 0
    if layout == LEADERBOARD:
        free = np.ones_like(free)
    return np.split(free, np.cumsum(natoms.reshape(-1).tolist())[:-1])


def _ids(batch: Any) -> list[str]:
    """SID_FID of each structure; SID if the data have no fid."""
    sids, fids = batch.get("sid"), batch.get("fid")
    if sids is None:
        raise EvaluationError("the records have no `sid`, from which a submission's ids are made.")
    sids, fids = (v.reshape(-1).tolist() if hasattr(v, "reshape") else v for v in (sids, fids))
    if fids is None:
        return [str(sid) for sid in sids]
    return [f"{sid}_{fid}" for sid, fid in zip(sids, fids)]


def expected_of(path: Path, layout: str) -> Expected:
    """Ids and numbers of atoms of a split's records, read from its LMDBs."""
    from fairchem_kit.data.reader import LmdbReader

    dataset = LmdbReader({"src": str(path), "checks": "none"})
    counts = {}
    for position in bar(range(len(dataset)), desc=path.name, unit="record"):
        record = dataset[position]
        fixed = record.fixed.reshape(-1)
        name = f"{_number(record.sid)}"
        if "fid" in record:
            name = f"{name}_{_number(record.fid)}"
        counts[name] = len(fixed) if layout == LEADERBOARD else int((fixed == 0).sum())
    return Expected(counts)


def _number(value: Any) -> Any:
    return value.reshape(-1)[0].item() if hasattr(value, "reshape") else value
