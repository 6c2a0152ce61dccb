"""Small files that are always complete or absent for any reader."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any

from fairchem_kit.files import OutputError, reason_of, writable_folder


def write_atomically(path: Path, text: str, keep_first: bool = False) -> bool:
    """Write ``text`` to a temporary file and rename it to ``path``.

    Args:
        path: its folder is created if needed. text: the whole content. keep_first: keep an existing
            file.

    Returns:
        whether ``text`` was written.

    Raises:
        OutputError: if writing fails.
    """
    writable_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if not keep_first:
            os.replace(temporary, path)
            return True
        try:
            os.link(temporary, path)  # fails if there is one, on every file system
        except FileExistsError:
            return False
        return True
    except OSError as error:
        raise OutputError(f"{path} could not be written: {reason_of(error) or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in ``path``; None if the file does not exist or is not a mapping."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: dict[str, Any], keep_first: bool = False) -> bool:
    return write_atomically(path, json.dumps(value, indent=1) + "\n", keep_first)
