"""Configuration files that a command line names."""

from __future__ import annotations

from pathlib import Path

from fairchem_kit.errors import UserError
from fairchem_kit.files import existing_file

_WITH_NDEM = "_ndem.yml"


def existing_config(path: str | Path, error: type[UserError]) -> Path:
    """``path``, which is a file.

    Raises:
        error: if it is not there, or is a directory.
    """
    hint = plain_instead(path)
    if hint:
        raise error(f"{path}: there is no such file.{hint}")
    return existing_file(path, error)


def plain_instead(path: str | Path) -> str:
    """A sentence for the name of a file for NDeM that no longer exists next to the plain one.

    Molecules had a file for each; now NDeM is a setting in the plain one.
    """
    path = Path(path)
    plain = path.with_name(path.name.removesuffix(_WITH_NDEM) + path.suffix)
    if not path.name.endswith(_WITH_NDEM) or path.exists() or not plain.is_file():
        return ""
    return f" NDeM is a setting of {plain}: take that file with task.ndem.coefficient=1."
