"""One checkpoint file: an ordinary file of ``torch.save`` that is complete or does not exist.

It is written under a temporary name, synced to the disk, and renamed, which is atomic. torch's
files are zip archives with a CRC-32 of every record. This checksum is part of every copy, and it is
verified before anything is unpickled.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairchem_kit.checkpoints.errors import CheckpointError
from fairchem_kit.checkpoints.reading import is_old_format, read
from fairchem_kit.files import existing_file, reason_of, sync_directory, temporary_name


def write_checkpoint(state: Mapping[str, Any], path: str | Path) -> Path:
    """Write ``state`` to ``path``; a kill at any moment leaves the old file or the new one.

    Raises:
        CheckpointError: if writing fails (disk full, read-only, gone); the old file is unchanged.
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
        full = _is_full(path.parent)  # torch does not always say why it cannot write
        with contextlib.suppress(OSError):
            temporary.unlink()
        why = "the disk is full" if full and isinstance(error, RuntimeError) else _why(error)
        raise CheckpointError(
            f"{path} could not be written ({why}). An existing file is unchanged; "
            f"{_free_space(path.parent)}"
        ) from error
    return path


def verify(path: str | Path) -> None:
    """Verify the checksum of every record.

    Raises:
        CheckpointError: saying what is wrong: truncated, damaged, or not a checkpoint.
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
    # With a damaged archive directory zipfile can raise many kinds of errors.
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is truncated: {error}.") from error
    except (NotImplementedError, UnicodeError, OverflowError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of {damaged} does not match.")


def read_checkpoint(
    path: str | Path, map_location: torch.device | str = "cpu", unsafe: bool = False
) -> dict[str, Any]:
    """Verify the checksums of a checkpoint and return its content.

    Args:
        path: the file.
        map_location: where its tensors go.
        unsafe: read the file even if that runs code in it
            (:func:`fairchem_kit.checkpoints.reading.read`).

    Raises:
        UnsafeError: if it contains more than plain values, without ``unsafe``.
        CheckpointError: if the file is missing, truncated, damaged, or not a trainer's checkpoint.
    """
    path = existing_file(path, CheckpointError)
    if not is_old_format(path):
        verify(path)
    try:
        state = read(path, map_location, unsafe)
    except CheckpointError:
        raise
    except Exception as error:  # torch and pickle raise many kinds of errors for a broken file
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: is it truncated or damaged? "
            f"({type(error).__name__}: {first})"
        ) from error
    if not isinstance(state, dict) or not isinstance(state.get("state_dict"), Mapping):
        found = ", ".join(map(str, list(state)[:5])) if isinstance(state, dict) else type(state)
        raise CheckpointError(
            f"{path} is not a trainer's checkpoint: it has no state_dict (found: {found})."
        )
    return state


def plain(value: Any) -> Any:
    """The same tree as plain Python values and tensors, which the restricted reader accepts."""
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
    return str(value)  # paths, devices, enumerations: only to be read by people


def _not_ours(path: Path, size: int, start: bytes) -> str:
    if size == 0:
        return f"{path} is empty."
    return f"{path} is not a checkpoint: it starts with {start!r} ({size} bytes)."


def _is_full(directory: Path) -> bool:
    """Whether less than 1 MiB is free, into which no checkpoint fits."""
    free = _free_mib(directory)
    return free is not None and free < 1


def _free_space(directory: Path) -> str:
    free = _free_mib(directory)
    return f"is {directory} still there?" if free is None else f"{free:.0f} MiB are free there."


def _free_mib(directory: Path) -> float | None:
    with contextlib.suppress(OSError):
        disk = os.statvfs(directory)
        return disk.f_bavail * disk.f_frsize / 2**20
    return None


def _why(error: OSError | RuntimeError) -> str:
    return (reason_of(error) if isinstance(error, OSError) else None) or str(error)
