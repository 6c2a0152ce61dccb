"""Writing a data set under a temporary name and moving it into place when complete."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import DataError
from .parallel import INTERRUPTED, raise_if_interrupted

DATASET_FILE = "dataset.json"
SYSTEMS_FILE = "systems.json"
OWN_FILES = (
    DATASET_FILE,
    SYSTEMS_FILE,
    "linear_reference.npz",
    "metadata.npz",
    "fairchem2.yaml",
)
_RECORDS = ("data.*.lmdb", "data.*.aselmdb")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of this package; ``{}`` if it does not exist.

    Raises:
        DataError: the file exists but is not JSON.
    """
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); move it away and try again") from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically: a reader sees the old or the new content, never a part."""
    temporary = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Make SIGTERM (a SLURM time limit) clean up like Ctrl-C while the block runs.

    An exception raised by a signal can be lost where Python ignores exceptions (hooks around a
    fork, finalizers); so the signal is stored as well, see ``raise_if_interrupted``.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: Any) -> None:
        INTERRUPTED.set()
        raise KeyboardInterrupt

    INTERRUPTED.clear()
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        INTERRUPTED.clear()
        for number, handler in previous.items():
            signal.signal(number, handler)


def check_target(out: Path, split: str | None, overwrite: bool) -> None:
    """Refuse a target that would lose data.

    Args:
        out: the data set's directory.
        split: name of the only split to write, or None for the whole directory. overwrite: allow
            replacing, but only a directory written by these tools.

    Raises:
        DataError: the message says what to do.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"{out} is a file; give another --out")
    if not any(out.iterdir()):
        return
    if not (out / DATASET_FILE).is_file():
        raise DataError(
            f"{out} is not empty and has no {DATASET_FILE}, so it was not written by this "
            "command; give another --out (--overwrite only replaces what this command wrote)"
        )
    if split is None and not overwrite:
        raise DataError(
            f"{out} already holds a data set; give another --out, or --overwrite to replace "
            "it (`ndem data ase --split NAME` adds one split to it)"
        )
    foreign = _foreign_entries(out if split is None else out / split)
    if overwrite and foreign:
        raise DataError(
            f"--overwrite would delete {foreign[0]}, which these tools did not write; move it away "
            "or give another --out"
        )
    if split is not None and (out / split).exists() and not overwrite:
        raise DataError(
            f"{out / split} exists; give another --split or --out, or --overwrite to replace it"
        )


def _foreign_entries(directory: Path) -> list[Path]:
    """Entries of a data set or split that were not written by these tools."""
    if not directory.is_dir():
        return []
    foreign = []
    for path in sorted(directory.iterdir()):
        ours = path.name in OWN_FILES or _matches(path, [f"{kind}*" for kind in _RECORDS])
        if path.is_dir():
            inside = any(_matches(p, _RECORDS) for p in path.iterdir())
            foreign += _foreign_entries(path) if inside else [path]
        elif not ours:
            foreign.append(path)
    return foreign


def _matches(path: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)


@contextmanager
def staging(out: Path, split: str | None) -> Iterator[Path]:
    """Give a temporary directory next to ``out`` and move it into place if the block succeeds.

    The block writes split directories and the JSON files into it. With ``split``, only that split
    and the JSON files are moved into an existing ``out``; else the whole directory replaces it.
    On any exception (including Ctrl-C and SIGTERM) the temporary directory is removed. Call it
    under ``lock.only_writer``.

    Raises:
        DataError: the target was created while the block ran, on a file system without locks.
    """
    out = out.resolve()  # follow a link: the data stay on the disk to which it points
    target = out if split is None else out / split
    before = _identity(target)
    temporary = out.with_name(f"{out.name}.partial-{os.getpid()}")
    try:
        with terminate_as_interrupt():
            temporary.mkdir(parents=True)
            yield temporary
            raise_if_interrupted()
        if _identity(target) != before:
            raise DataError(
                f"{target} was made or replaced by another conversion in the meantime; nothing was "
                "written. Look at it, then give another --out, or --overwrite"
            )
        if split is not None and out.is_dir():
            _replace(temporary / split, out / split)
            for name in (SYSTEMS_FILE, DATASET_FILE):
                (temporary / name).replace(out / name)
            for extra in temporary.iterdir():
                extra.replace(out / extra.name)
        else:
            _replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _identity(path: Path) -> tuple[int, int] | None:
    """Identity of the directory at a path, None if it is missing or empty."""
    if not path.is_dir() or not any(path.iterdir()):
        return None
    status = path.stat()
    return status.st_dev, status.st_ino


def _replace(new: Path, target: Path) -> None:
    """Rename ``new`` to ``target``; an old target is renamed away first and then deleted."""
    old = target.with_name(f"{target.name}.replaced-{os.getpid()}")
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
