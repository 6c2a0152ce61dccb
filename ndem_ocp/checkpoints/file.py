"""One checkpoint file: an ordinary file of ``torch.save`` that is complete or does not exist.

Written beside its place, synced to the disk, then renamed, which a file system does at once or not
at all. torch's files are zip archives with a CRC-32 of every record in them: that is the checksum,
it travels with every copy, and it is compared before anything is unpickled.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ndem_ocp.checkpoints.errors import CheckpointError
from ndem_ocp.checkpoints.reading import is_old_format, read
from ndem_ocp.files import TEMPORARY, existing_file, reason_of, sync_directory, temporary_name

_ABANDONED_S = 24 * 3600  # age of another host's unfinished file that is surely dead


def write_checkpoint(state: Mapping[str, Any], path: str | Path) -> Path:
    """Write ``state`` to ``path``; a kill at any moment leaves the old file or the new one.

    Raises:
        CheckpointError: when the disk refuses (full, read-only, gone); the old file is untouched.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            torch.save(plain(state), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise CheckpointError(
            f"{path} could not be written ({_why(error)}). What was there before is untouched; "
            f"{_free_space(path.parent)}"
        ) from error
    return path


def verify(path: str | Path) -> None:
    """Compare every record's checksum with what the file says.

    Raises:
        CheckpointError: saying what is wrong: torn, damaged, or no checkpoint at all.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(2)
        if start != b"PK" and not zipfile.is_zipfile(path):
            raise CheckpointError(_not_ours(path, size, start))
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist (from {Path.cwd()}).") from None
    # A damaged directory of the archive makes zipfile raise many kinds of errors.
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is torn: {error}.") from error
    except (NotImplementedError, UnicodeError, OverflowError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of {damaged} does not match.")


def read_checkpoint(
    path: str | Path, map_location: torch.device | str = "cpu", unsafe: bool = False
) -> dict[str, Any]:
    """The content of a checkpoint after its checksums have been compared.

    Args:
        path: the file.
        map_location: where its tensors go.
        unsafe: run code that the file contains, if it needs that to be read
            (:func:`ndem_ocp.checkpoints.reading.read`).

    Raises:
        UnsafeError: if it holds more than plain values, and ``unsafe`` was not given.
        CheckpointError: if the file is missing, torn, damaged, or no checkpoint of a trainer.
    """
    path = existing_file(path, CheckpointError)
    if not is_old_format(path):
        verify(path)
    try:
        state = read(path, map_location, unsafe)
    except CheckpointError:
        raise
    except Exception as error:  # torch and pickle raise many kinds for a broken file
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: is it cut off or damaged? "
            f"({type(error).__name__}: {first})"
        ) from error
    if not isinstance(state, dict) or not isinstance(state.get("state_dict"), Mapping):
        found = ", ".join(map(str, list(state)[:5])) if isinstance(state, dict) else type(state)
        raise CheckpointError(
            f"{path} is no checkpoint of a trainer: it has no state_dict (found: {found})."
        )
    return state


def plain(value: Any) -> Any:
    """The same tree of plain Python values and tensors, which the restricted reader takes."""
    if isinstance(value, torch.Tensor) or value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, (bool, int, float, bytes)):
        return value
    return str(value)  # paths, devices, enumerations: for reading, not for rebuilding


def clean_up(directory: Path) -> None:
    """Remove what writers that were killed left behind: dead processes of this host, old others."""
    here = f"{TEMPORARY}{socket.gethostname()}-"
    for path in directory.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError, ValueError):
            if path.name.startswith(here):
                dead = not _alive(int(path.name.removeprefix(here).split("-", 1)[0]))
            else:
                dead = time.time() - path.stat().st_mtime > _ABANDONED_S
            if dead:
                path.unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _not_ours(path: Path, size: int, start: bytes) -> str:
    if size == 0:
        return f"{path} is empty."
    return f"{path} is no checkpoint: it starts with {start!r} ({size} bytes)."


def _free_space(directory: Path) -> str:
    with contextlib.suppress(OSError):
        disk = os.statvfs(directory)
        return f"{disk.f_bavail * disk.f_frsize / 2**20:.0f} MiB are free there."
    return f"is {directory} still there?"


def _why(error: OSError | RuntimeError) -> str:
    return (reason_of(error) if isinstance(error, OSError) else None) or str(error)
