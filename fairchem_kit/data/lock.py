"""Only one writer of a data set at a time, and cleaning up after one that was killed."""

from __future__ import annotations

import functools
import glob
import inspect
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from fairchem_kit.locks import Held, release, take

from .errors import DataError

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_held: set[Path] = set()


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Keep other processes from writing ``out`` while the block runs.

    The lock is a file next to ``out``; the system releases it when the process ends, in whatever
    way. Files left next to ``out`` by a killed process are first removed, or put back if they had
    been moved away to be replaced. The same process may take the lock again.

    Raises:
        DataError: another process is writing there, or a disk error.
    """
    out = out.resolve()
    if out in _held:
        yield
        return
    try:
        made = _make_parents(out.parent)
        descriptor, path = _take(out)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {describe(error)}; give another --out") from None
    _held.add(out)
    try:
        if descriptor is not None:
            _clean(out)
        yield
    except BrokenPipeError:  # the reader has closed stdout
        raise
    except OSError as error:
        raise DataError(
            f"{out} was not written: {describe(error)}. Nothing was left behind; free some space "
            "or give another --out"
        ) from None
    finally:
        _held.discard(out)
        if descriptor is not None:
            release(path, descriptor)
        _remove_empty(made)


def one_writer(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Decorate a function that writes its argument ``out`` to run under :func:`only_writer`."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def locked(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with only_writer(Path(signature.bind(*args, **kwargs).arguments["out"])):
            return function(*args, **kwargs)

    return locked


def describe(error: OSError) -> str:
    """A system error in words: what, and on which file."""
    text = error.strerror or str(error)
    return f"{text} ({error.filename})" if error.filename else text


def _make_parents(folder: Path) -> list[Path]:
    """Make a folder; returns the new ones, the innermost first."""
    new = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return new


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # not empty: it contains the output
            return


def _take(out: Path) -> tuple[int | None, Path]:
    """The open lock file, None if the file system has no locks; and its path."""
    path = out.with_name(f".{out.name}.lock")
    try:
        return take(path), path
    except Held as held:
        raise DataError(
            f"{out} is being written by another conversion ({held}); wait for it to end, or give "
            "another --out"
        ) from None


def _clean(out: Path) -> None:
    """Remove or put back files left by a killed writer of ``out``; we now hold the lock."""
    inside = sorted(out.iterdir()) if out.is_dir() else []
    outside = sorted(out.parent.glob(f"{glob.escape(out.name)}.*"))
    for path in (*outside, *inside):
        match = re.fullmatch(r"(.+)\.(partial|replaced)-\d+", path.name)
        if match is None or (path in outside and match[1] != out.name):
            continue
        target = path.with_name(match[1])
        if match[2] == "replaced" and not target.exists():
            path.rename(target)
            print(f"put back {target}, which a killed conversion was replacing", file=sys.stderr)
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        print(f"removed {path}, which a killed conversion left", file=sys.stderr)
