"""Files given by the user: checking that they exist, and writing them completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from fairchem_kit.errors import UserError
from fairchem_kit.processes import is_alive

_ABANDONED_S = 24 * 3600  # an unfinished file of another host that is older is abandoned
TEMPORARY = ".writing-"  # prefix of a file being written, before host, process and final name

# Errors that a user can fix; any other, such as a lost connection, keeps its traceback.
_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than allowed here",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.ENOENT: "no such file or directory",
    errno.ENOTDIR: "part of this path is a file, not a directory",
    errno.EISDIR: "this is a directory, but a file is needed",
    errno.EEXIST: "this exists already",
    errno.ELOOP: "a symbolic link that points back to itself",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EIO: "the disk cannot be read or written",
    errno.EMFILE: "too many files are open",
    errno.ENOTEMPTY: "the directory is not empty",
    errno.EBUSY: "it is in use",
    errno.ETXTBSY: "it is in use",
    errno.ESTALE: "the network file system has lost this file",
}


class InputError(UserError, ValueError):
    """A path given by the user that cannot be read; the message names it."""


class OutputError(UserError, OSError):
    """A file that cannot be written; the message names it. An existing file is unchanged."""


def reason_of(error: OSError) -> str | None:
    """What is wrong with a file or disk, in words; None if the error is about neither."""
    return _REASONS.get(error.errno or 0)


def check_name(path: str | Path, error: type[UserError] = InputError) -> None:
    """Refuse a name that cannot be written into text files: results, configurations, tables.

    Raises:
        InputError: or ``error``, if it is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(str(path)).decode(errors="replace")
        raise error(f"{shown}: this name is not UTF-8 text. Rename it.") from None


def existing(
    path: str | Path, error: type[UserError] = InputError, option: str | None = None
) -> Path:
    """Return ``path``, an existing file or directory.

    Args:
        path: as given. error: the class to raise. option: of the command line, for the message.

    Raises:
        InputError: or ``error``, if it does not exist or is a broken link.
    """
    path = Path(path)
    try:
        path.stat()
    except OSError as problem:
        shown = f"{option} {path}" if option else f"{path}"
        raise error(f"{shown}: {_why_absent(path, problem)}.") from None
    return path


def existing_file(path: str | Path, error: type[UserError] = InputError) -> Path:
    """Return ``path``, an existing file.

    Raises:
        InputError: or ``error``, if it does not exist or is a directory.
    """
    path = Path(path)
    if existing(path, error).is_dir():
        raise error(f"{path}: this is a directory, but a file is needed.")
    return path


def _why_absent(path: Path, problem: OSError) -> str:
    if problem.errno == errno.ENOENT and path.is_symlink():
        return f"a symbolic link to {path.readlink()}, which does not exist"
    if problem.errno == errno.ENOENT:
        return f"no such file or directory (from {Path.cwd()})"
    return reason_of(problem) or problem.strerror or str(problem)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name next to ``path`` to write to; it is renamed to ``path`` at the end.

    Raises:
        OutputError: if writing fails; ``path`` is unchanged and the temporary file removed.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        yield temporary
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        if isinstance(error, OutputError) or reason_of(error) is None:
            raise
        raise OutputError(
            f"{path} could not be written: {reason_of(error)}. An existing file is unchanged."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path``, completely or not at all.

    Raises:
        OutputError: when the disk refuses.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def writable_folder(path: str | Path) -> Path:
    """Create directory ``path`` if needed and check that files can be written there.

    Raises:
        OutputError: if it cannot be created or written to.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path}: this is a file, but a directory to write to is needed.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = temporary_name(path / "probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"{path}: cannot write there: {reason_of(error) or error}.") from error
    return path


def sync_directory(directory: Path) -> None:
    """Make renames in ``directory`` permanent; some file systems cannot and need not."""
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def temporary_name(path: Path) -> Path:
    """The temporary name to which this process writes ``path``."""
    return path.with_name(f"{TEMPORARY}{socket.gethostname()}-{os.getpid()}-{path.name}")


def clean_up(directory: Path) -> None:
    """Remove files and folders left by killed writers: dead processes of this host, and old ones of
    others."""
    here = f"{TEMPORARY}{socket.gethostname()}-"
    for path in directory.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError, ValueError):
            if path.name.startswith(here):
                dead = not is_alive(int(path.name.removeprefix(here).split("-", 1)[0]))
            else:
                dead = time.time() - path.stat().st_mtime > _ABANDONED_S
            if dead:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
