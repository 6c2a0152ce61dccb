"""Reading somebody else's checkpoint without running what it may contain.

A checkpoint is a pickle, and a pickle may call anything. Files are read with torch's restricted
reader. Classes of Lightning and omegaconf, which training code leaves in checkpoints, are read as
empty stand-ins that carry no code, so neither package needs to be installed.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ndem_ocp.checkpoints.file import numpy_rebuilders
from ndem_ocp.errors import NDeMError

# Names that get a stand-in. Nothing of the real class is imported.
_INERT = re.compile(
    r"^(pytorch_lightning|lightning|lightning_fabric|omegaconf|pathlib|submitit"
    r"|fairchem\.core|ocpmodels)\."
)
# What holds values and does nothing; numpy's numbers are in fairchem's metrics.
_REAL: dict[str, Any] = {
    "argparse.Namespace": argparse.Namespace,
    **{f"builtins.{kind.__name__}": kind for kind in (int, float, str, bool, list, dict, set)},
    "numpy.dtype": np.dtype,
    "numpy.ndarray": np.ndarray,
    **{
        f"numpy.{core}.multiarray.{function.__name__}": function
        for core in ("core", "_core")
        for function in numpy_rebuilders()
    },
}
_NUMBERS = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "b1")]
_PICKLE = b"\x80"  # first byte of torch's old format
_WRAPPERS = re.compile(r"^(module\.|model\.|_orig_mod\.)+")  # DDP, Lightning, torch.compile


# torch 2.6; before, files that name such classes are refused unless `unsafe` is given
CAN_ALLOW = hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint")


class PretrainedError(NDeMError, ValueError):
    """A checkpoint that cannot be read or must not be loaded; the message says the way out."""


@dataclass
class SourceCheckpoint:
    """What is left of a checkpoint file: weights without wrappers' prefixes, hyper-parameters."""

    path: Path
    weights: dict[str, Tensor]
    hyper_parameters: dict[str, Any] = field(default_factory=dict)  # empty if the file has none


def existing(path: str | Path) -> Path:
    """The path of a file that is there.

    Raises:
        PretrainedError: if it is not, or is a directory.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise PretrainedError(f"The checkpoint {path} {what} (from {Path.cwd()}).")
    return path


def read_content(path: Path, unsafe: bool = False, trusted: bool = False) -> Any:
    """What a checkpoint file holds, tensors on the CPU.

    Args:
        path: the file.
        unsafe: use the unrestricted pickle reader, which runs code that the file contains.
        trusted: use it only if the restricted one refuses the file, and say so.

    Raises:
        PretrainedError: if the file is cut off, no checkpoint, or needs ``unsafe``.
    """
    try:
        return _load(path, unsafe)
    except _NeedsUnsafe as error:
        if not trusted:
            raise
        logging.warning(
            f"{path} contains more than weights and plain values ({error.what}), as old "
            "checkpoints of fairchem do, and you named its kind: it is read with the unrestricted "
            "reader, which runs any code that its author put there."
        )
        return _load(path, unsafe=True)


def read_checkpoint(path: str | Path, unsafe: bool = False) -> SourceCheckpoint:
    """Read a Lightning checkpoint or a bare state dict.

    Args:
        path: the file.
        unsafe: see :func:`read_content`.

    Raises:
        PretrainedError: if the file is missing, cut off, no checkpoint, or needs ``unsafe``.
    """
    path = existing(path)
    return source_of(read_content(path, unsafe), path)


def source_of(content: Any, path: Path) -> SourceCheckpoint:
    """Weights and hyper-parameters in the content of a Lightning checkpoint or a state dict.

    Raises:
        PretrainedError: if there are no weights by name.
    """
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        weights, hyper = content["state_dict"], content.get("hyper_parameters")
    else:
        weights, hyper = content, None
    if not isinstance(weights, Mapping):
        raise PretrainedError(f"{path} holds a {type(content).__name__}, not weights by name.")
    tensors = {key: value for key, value in weights.items() if isinstance(value, Tensor)}
    if not tensors or not all(isinstance(key, str) for key in tensors):
        some = ", ".join(map(repr, list(weights)[:5])) or "nothing"
        raise PretrainedError(f"{path} holds no weights by name (it has: {some}).")
    return SourceCheckpoint(path, _without_wrappers(tensors, path), _plain(hyper))


class _NeedsUnsafe(PretrainedError):
    def __init__(self, path: Path, names: list[str]) -> None:
        self.what = ", ".join(sorted(names))
        super().__init__(
            f"{path} contains more than weights and plain values: {self.what}. Reading such a file "
            "can run any code that its author put there. If you trust it, set "
            "task.init_from.unsafe: True (load_pretrained(..., unsafe=True)), or kind: fairchem if "
            "it is an old checkpoint of fairchem; otherwise save its state_dict and "
            "hyper_parameters alone, where it was made."
        )


class _Inert:
    """Stands for a class whose code is not wanted: it takes anything and does nothing."""

    def __init__(self, *given: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, Mapping) else {"state": state})


def _load(path: Path, unsafe: bool) -> Any:
    try:
        if unsafe:
            return torch.load(path, map_location="cpu", weights_only=False)
        with _allowed(_stand_ins(path)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"Unsupported (?:global|class).*", str(error))
        if found and not unsafe and (zipfile.is_zipfile(path) or _first_byte(path) == _PICKLE):
            raise _NeedsUnsafe(path, [found.group(0)[:120]]) from error
        raise PretrainedError(_broken(path, error)) from error
    except PretrainedError:
        raise
    except Exception as error:  # torch raises many kinds for files that are cut off or not its own
        raise PretrainedError(_broken(path, error)) from error


def _allowed(names: list[Any]) -> contextlib.AbstractContextManager[Any]:
    """Let torch's restricted reader take ``names``, where it can be told so."""
    return torch.serialization.safe_globals(names) if CAN_ALLOW else contextlib.nullcontext()


def _stand_ins(path: Path) -> list[Any]:
    """What the restricted reader may use for the classes that this file names."""
    if not zipfile.is_zipfile(path):
        return [*_REAL.values(), *_NUMBERS]
    if not CAN_ALLOW:
        return []
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    refused = [name for name in names if name not in _REAL and not _INERT.match(name)]
    if refused:
        raise _NeedsUnsafe(path, refused)
    stand_ins = [
        (
            _REAL.get(name) or type(name.rpartition(".")[2], (_Inert,), {"__module__": __name__}),
            name,
        )
        for name in names
    ]
    return [*stand_ins, *_NUMBERS]


def _broken(path: Path, error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    size = path.stat().st_size
    return (
        f"{path} ({size} bytes) cannot be read as a checkpoint. Is it cut off, or no torch file? "
        f"({type(error).__name__}: {first[:200]})"
    )


def _without_wrappers(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    plain: dict[str, Tensor] = {}
    for key, value in weights.items():
        name = _WRAPPERS.sub("", key)
        if name in plain:
            raise PretrainedError(f"{path} holds {name} twice, under different prefixes.")
        plain[name] = value
    return plain


def _plain(hyper: Any) -> dict[str, Any]:
    """Hyper-parameters from a mapping, an argparse.Namespace or a stand-in of omegaconf's."""
    if hyper is None:
        return {}
    values = hyper if isinstance(hyper, Mapping) else getattr(hyper, "__dict__", {})
    values = values.get("_content", values)
    values = values if isinstance(values, Mapping) else {}
    return {str(key): getattr(value, "_val", value) for key, value in values.items()}


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1)
