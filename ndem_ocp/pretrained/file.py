"""Weights and hyper-parameters in a checkpoint of another package.

Files are read by :mod:`fairchem_kit.checkpoints.reading`, which never runs code in them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fairchem_kit.checkpoints.errors import UnsafeError
from fairchem_kit.checkpoints.reading import read
from fairchem_kit.errors import UserError

_OPT_IN = (
    "task.init_from.unsafe: True (load_pretrained(..., unsafe=True)); otherwise save its "
    "state_dict and hyper_parameters only, in the environment in which it was made"
)
_WRAPPERS = re.compile(r"^(module\.|model\.|_orig_mod\.)+")  # DDP, Lightning, torch.compile


class PretrainedError(UserError, ValueError):
    """A checkpoint that cannot be read or must not be loaded; the message says what to do."""


@dataclass
class SourceCheckpoint:
    """Weights (without prefixes of wrappers) and hyper-parameters of a checkpoint file."""

    path: Path
    weights: dict[str, Tensor]
    hyper_parameters: dict[str, Any] = field(default_factory=dict)  # empty if the file has none


def existing(path: str | Path) -> Path:
    """The path of an existing file.

    Raises:
        PretrainedError: if it does not exist, or is a directory.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise PretrainedError(f"The checkpoint {path} {what} (from {Path.cwd()}).")
    return path


def read_content(path: Path, unsafe: bool = False) -> Any:
    """The content of a checkpoint file, with tensors on the CPU.

    Args:
        path: the file.
        unsafe: use the unrestricted pickle reader, which can run code in the file.

    Raises:
        PretrainedError: if the file is truncated, not a checkpoint, or needs ``unsafe``.
    """
    try:
        return read(path, unsafe=unsafe)
    except UnsafeError as error:
        raise PretrainedError(str(UnsafeError(path, error.what, _OPT_IN))) from error
    except Exception as error:  # torch raises many kinds of errors for truncated and foreign files
        raise PretrainedError(_broken(path, error)) from error


def read_checkpoint(path: str | Path, unsafe: bool = False) -> SourceCheckpoint:
    """Read a Lightning checkpoint or a bare state dict.

    Args:
        path: the file.
        unsafe: see :func:`read_content`.

    Raises:
        PretrainedError: if the file is missing, truncated, not a checkpoint, or needs ``unsafe``.
    """
    path = existing(path)
    return source_of(read_content(path, unsafe), path)


def source_of(content: Any, path: Path) -> SourceCheckpoint:
    """Weights and hyper-parameters from the content of a Lightning checkpoint or a state dict.

    Raises:
        PretrainedError: if there are no named weights.
    """
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        weights, hyper = content["state_dict"], content.get("hyper_parameters")
    else:
        weights, hyper = content, None
    if not isinstance(weights, Mapping):
        raise PretrainedError(f"{path} contains a {type(content).__name__}, not named weights.")
    tensors = {key: value for key, value in weights.items() if isinstance(value, Tensor)}
    if not tensors or not all(isinstance(key, str) for key in tensors):
        some = ", ".join(map(repr, list(weights)[:5])) or "nothing"
        raise PretrainedError(f"{path} contains no named weights (it has: {some}).")
    return SourceCheckpoint(path, _without_wrappers(tensors, path), _plain(hyper))


def _broken(path: Path, error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    size = path.stat().st_size
    return (
        f"{path} ({size} bytes) cannot be read as a checkpoint. Is it truncated, or not a torch "
        f"file? ({type(error).__name__}: {first[:200]})"
    )


def _without_wrappers(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    plain: dict[str, Tensor] = {}
    for key, value in weights.items():
        name = _WRAPPERS.sub("", key)
        if name in plain:
            raise PretrainedError(f"{path} contains {name} twice, under different prefixes.")
        plain[name] = value
    return plain


def _plain(hyper: Any) -> dict[str, Any]:
    """Hyper-parameters from a mapping, an argparse.Namespace or a placeholder for omegaconf."""
    if hyper is None:
        return {}
    values = hyper if isinstance(hyper, Mapping) else getattr(hyper, "__dict__", {})
    values = values.get("_content", values)
    values = values if isinstance(values, Mapping) else {}
    return {str(key): getattr(value, "_val", value) for key, value in values.items()}
