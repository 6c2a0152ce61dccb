"""Files that a user names: are they there, before anything slow is imported or computed?"""

from __future__ import annotations

import errno
from pathlib import Path

from ndem_ocp.errors import NDeMError


class InputError(NDeMError, ValueError):
    """A path that a user gave and that cannot be read; the message names it."""


def existing(
    path: str | Path, error: type[NDeMError] = InputError, option: str | None = None
) -> Path:
    """``path``, which is a file or a directory.

    Args:
        path: as given. error: the class to raise. option: of the command line, for the message.

    Raises:
        InputError: or ``error``, if it is not there, or a link leads nowhere.
    """
    path = Path(path)
    try:
        path.stat()
    except OSError as problem:
        shown = f"{option} {path}" if option else f"{path}"
        raise error(f"{shown}: {_reason(path, problem)}.") from None
    return path


def existing_file(path: str | Path, error: type[NDeMError] = InputError) -> Path:
    """``path``, which is a file.

    Raises:
        InputError: or ``error``, if it is not there, or is a directory.
    """
    path = Path(path)
    if existing(path, error).is_dir():
        raise error(f"{path}: this is a directory; the name of a file is needed.")
    return path


def _reason(path: Path, problem: OSError) -> str:
    if problem.errno == errno.ENOENT and path.is_symlink():
        return f"a symbolic link to {path.readlink()}, which is not there"
    if problem.errno == errno.ENOENT:
        return f"no such file or directory (from {Path.cwd()})"
    if problem.errno == errno.ELOOP:
        return "a symbolic link that leads back to itself"
    return problem.strerror or str(problem)
