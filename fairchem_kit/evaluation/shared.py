"""What the commands that predict with a checkpoint share: options, ranks, a progress bar."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fairchem_kit.commands.options import (
    add_amp,
    add_cpu,
    add_ranks,
    add_unsafe,
    add_weights,
)
from fairchem_kit.evaluation.errors import EvaluationError
from fairchem_kit.files import clean_up, existing_file, temporary_name
from fairchem_kit.launch.signals import ALL
from fairchem_kit.progress import bar


def add_common(parser: argparse.ArgumentParser) -> None:
    """Options of all commands that predict with a checkpoint."""
    add = parser.add_argument
    add_weights(parser)
    add_unsafe(parser)
    add("--batch-size", type=int, metavar="N", help="default: optim.eval_batch_size of the run")
    add_ranks(parser)
    add("--workers", type=int, metavar="N", help="data workers per rank; default: as in the run")
    add_cpu(parser)
    add_amp(parser)


def check_numbers(args: argparse.Namespace) -> None:
    """Refuse an invalid batch size or number of workers, and a missing checkpoint."""
    if args.batch_size is not None and args.batch_size < 1:
        raise EvaluationError("--batch-size must be at least 1.")
    if args.workers is not None and args.workers < 0:
        raise EvaluationError("--workers must be at least 0.")
    existing_file(args.checkpoint, EvaluationError)


def default_out(folder: str, checkpoint: Path) -> Path:
    """``FOLDER/RUN-CHECKPOINT`` in the current directory."""
    path = checkpoint.absolute()
    return Path(folder) / f"{path.parent.name}-{path.stem}"


def in_ranks(args: argparse.Namespace, work: Any, out: Path) -> int:
    """Call ``work(rank)`` here, or in --ranks new processes.

    Args:
        args: of the command. work: called with this process's Rank. out: folder that all ranks see.
    """
    from fairchem_kit.evaluation import ranks
    from fairchem_kit.launch import exit_codes
    from fairchem_kit.launch.errors import first_line, lost_contact
    from fairchem_kit.launch.local import LocalRanks

    place = ranks.my_place(args.ranks)
    if place is None:
        return LocalRanks(args.given, args.ranks, ranks.INTERRUPTED).wait()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ALL)  # as the launcher starts a rank
    with _records_count():
        rank = ranks.rank_of(place, args.cpu)
        try:
            with ranks.together(place, out / ".ranks"):
                return int(work(rank) or 0)
        except Exception as error:
            if rank.count > 1 and lost_contact(error):
                print(f"ndem: rank {rank.number} lost the other ranks: {first_line(error)}",
                      file=sys.stderr)  # fmt: skip
                return exit_codes.LOST_RANK
            raise
        finally:
            with contextlib.suppress(OSError):
                (out / ".ranks").rmdir()


@contextlib.contextmanager
def _records_count() -> Iterator[None]:
    """A damaged record ends an evaluation, because a split without it is another split."""
    from fairchem_kit.data.reader import RecordError

    try:
        yield
    except RecordError as error:
        if not error.key:  # the whole file
            raise
        raise EvaluationError(
            f"{error.file}: record {error.key}: {error.reason}. Every record of a split counts: "
            "`ndem data check` lists the bad ones; make the split without them."
        ) from error


@contextlib.contextmanager
def new_files(out: Path, first: bool, replaced: Sequence[str] = ()) -> Iterator[Path]:
    """A folder for the files of the splits, which move to ``out`` at the end. A stopped command
    leaves those of an earlier one as they were.

    Args:
        out: an existing folder. first: whether this is rank 0; others do not write.
        replaced: patterns of an earlier command's files, to be removed.
    """
    if not first:
        yield out
        return
    clean_up(out)
    folder = temporary_name(out / "files")
    try:
        folder.mkdir(exist_ok=True)
        yield folder
        for path in [path for pattern in replaced for path in out.glob(pattern)]:
            path.unlink()
        for path in folder.iterdir():
            path.replace(out / path.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def progress(name: str) -> Any:
    """The progress of a split's batches."""

    def watch(batches: Iterable[Any], count: int) -> Iterable[Any]:
        return bar(batches, total=count, desc=name, unit="batch")

    return watch


def readers(config: dict[str, Any], asked: int | None, ranks: int) -> int:
    """Data workers per rank: as in the run, but no more than there are processors."""
    if asked is not None:
        return asked
    return min(int(config["optim"].get("num_workers") or 0), (os.cpu_count() or 1) // ranks)
