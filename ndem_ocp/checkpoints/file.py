"""One checkpoint file: an ordinary file of ``torch.save`` that is complete or does not exist.

Written beside its place, synced to the disk, then renamed, which a file system does at once or not
at all. torch's files are zip archives with a CRC-32 of every record in them: that is the checksum,
it travels with every copy, and it is compared before anything is unpickled.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
import time
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ndem_ocp.errors import NDeMError
from ndem_ocp.files import TEMPORARY, existing_file, reason_of, sync_directory, temporary_name

_ABANDONED_S = 24 * 3600  # age of another host's unfinished file that is surely dead


class CheckpointError(NDeMError, ValueError):
    """A checkpoint that cannot be written, read or used; the message names file and way out."""


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


def read_checkpoint(path: str | Path, map_location: torch.device | str = "cpu") -> dict[str, Any]:
    """The content of a checkpoint after its checksums have been compared.

    Read with torch's restricted reader (``weights_only=True``), with numpy's plain values allowed.
    Files of older fairchem versions that hold other objects are read without it, with a warning.

    Raises:
        CheckpointError: if the file is missing, torn, damaged, or no checkpoint of a trainer.
    """
    path = existing_file(path, CheckpointError)
    if not _is_old_format(path):
        verify(path)
    try:
        state = _load(path, map_location)
    except CheckpointError:
        raise
    except Exception as error:  # torch and pickle raise many kinds for a broken file
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(state, dict) or not isinstance(state.get("state_dict"), Mapping):
        found = ", ".join(map(str, list(state)[:5])) if isinstance(state, dict) else type(state)
        raise CheckpointError(
            f"{path} is no checkpoint of a trainer: it has no state_dict (found: {found})."
        )
    return state


def _load(path: Path, map_location: torch.device | str) -> Any:
    try:
        with _numpy_allowed():
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" not in str(error) and "WeightsUnpickler" not in str(error):
            raise
        logging.warning(
            f"{path} holds objects beside weights and plain values, as old checkpoints do "
            f"({_first_line(error)}). It is read with the full unpickler, which runs whatever code "
            "the file contains: go on only if you trust where it comes from. Saved anew by this "
            "trainer it needs no such trust."
        )
        return torch.load(path, map_location=map_location, weights_only=False)


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


def _is_old_format(path: Path) -> bool:
    """torch's format before 1.6: a bare pickle, without checksums."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(1) == b"\x80"
    return False


def _not_ours(path: Path, size: int, start: bytes) -> str:
    if size == 0:
        return f"{path} is empty."
    return f"{path} is no checkpoint: it starts with {start!r} ({size} bytes)."


def _numpy_allowed() -> contextlib.AbstractContextManager[Any]:
    """Let the restricted reader take numpy's plain values, where torch (2.6) can be told so."""
    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        return contextlib.nullcontext()
    return torch.serialization.safe_globals(_numpy_globals())


def _numpy_globals() -> list[Any]:
    """What pickled numpy numbers need: values, no code."""
    functions = numpy_rebuilders()
    kinds = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i4", "i8", "u1", "b1")]
    names = [(f, f"numpy.core.multiarray.{f.__name__}") for f in functions]
    return [np.dtype, np.ndarray, *functions, *kinds, *names]


def numpy_rebuilders() -> tuple[Any, Any]:
    """The functions that pickles of a NumPy number and of an array name: where they live depends on
    NumPy's version, and numpy._core of NumPy 1.26 is empty until something is imported from it."""
    return np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0]


def _free_space(directory: Path) -> str:
    with contextlib.suppress(OSError):
        disk = os.statvfs(directory)
        return f"{disk.f_bavail * disk.f_frsize / 2**20:.0f} MiB are free there."
    return f"is {directory} still there?"


def _why(error: OSError | RuntimeError) -> str:
    return (reason_of(error) if isinstance(error, OSError) else None) or str(error)


def _first_line(error: Exception) -> str:
    for line in str(error).splitlines():
        if "Unsupported" in line or "GLOBAL" in line:
            return line.strip()[:200]
    return (str(error).splitlines() or [""])[0][:200]
