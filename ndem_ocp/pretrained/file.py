"""Reading somebody else's checkpoint without running what it may contain.

A checkpoint is a pickle, and a pickle may call anything. Files are read with torch's restricted
reader. Classes of Lightning and omegaconf, which training code leaves in checkpoints, are read as
empty stand-ins that carry no code, so neither package needs to be installed.
"""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Names that get a stand-in. Nothing of the real class is imported.
_INERT = re.compile(r"^(pytorch_lightning|lightning|lightning_fabric|omegaconf|pathlib)\.")
_REAL = {"argparse.Namespace": argparse.Namespace}  # holds values, does nothing
_PICKLE = b"\x80"  # first byte of torch's old format
_WRAPPERS = re.compile(r"^(module\.|model\.|_orig_mod\.)+")  # DDP, Lightning, torch.compile


class PretrainedError(ValueError):
    """A checkpoint that cannot be read or must not be loaded; the message says the way out."""


@dataclass
class SourceCheckpoint:
    """What is left of a checkpoint file: weights without wrappers' prefixes, hyper-parameters."""

    path: Path
    weights: dict[str, Tensor]
    hyper_parameters: dict[str, Any] = field(default_factory=dict)  # empty if the file has none


def read_checkpoint(path: str | Path, unsafe: bool = False) -> SourceCheckpoint:
    """Read a Lightning checkpoint or a bare state dict.

    Args:
        path: the file.
        unsafe: use the unrestricted pickle reader, which runs code that the file contains.

    Raises:
        PretrainedError: if the file is missing, cut off, no checkpoint, or needs ``unsafe``.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise PretrainedError(f"The checkpoint {path} {what} (from {Path.cwd()}).")
    content = _load(path, unsafe)
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


def _load(path: Path, unsafe: bool) -> Any:
    try:
        if unsafe:
            return torch.load(path, map_location="cpu", weights_only=False)
        with torch.serialization.safe_globals(_stand_ins(path)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"Unsupported (?:global|class).*", str(error))
        if found and not unsafe and _first_byte(path) == _PICKLE:
            raise PretrainedError(_needs_unsafe(path, [found.group(0)[:120]])) from error
        raise PretrainedError(_broken(path, error)) from error
    except PretrainedError:
        raise
    except Exception as error:  # torch raises many kinds for files that are cut off or not its own
        raise PretrainedError(_broken(path, error)) from error


def _stand_ins(path: Path) -> list[Any]:
    """What the restricted reader may use for the classes that this file names."""
    if not zipfile.is_zipfile(path):
        return list(_REAL.values())
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    refused = [name for name in names if name not in _REAL and not _INERT.match(name)]
    if refused:
        raise PretrainedError(_needs_unsafe(path, refused))
    return [
        (_REAL.get(name) or type(name.rpartition(".")[2], (), {"__module__": __name__}), name)
        for name in names
    ]


def _needs_unsafe(path: Path, names: list[str]) -> str:
    return (
        f"{path} contains more than weights and plain values: {', '.join(sorted(names))}. Reading "
        "such a file can run any code that its author put there. If you trust it, set "
        "task.init_from.unsafe: True (load_pretrained(..., unsafe=True)); otherwise save its "
        "state_dict and hyper_parameters alone, where it was made."
    )


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
