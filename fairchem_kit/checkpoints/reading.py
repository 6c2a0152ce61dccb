"""Reading a checkpoint file without running code in it.

A checkpoint is a pickle, and a pickle can call any function. Files are read with torch's restricted
reader. numpy's numbers are allowed; classes of Lightning, omegaconf, submitit and fairchem, which
are common in checkpoints, are read as empty placeholders without code, and paths as text, so none
of these packages has to be installed. Everything else is refused, and the message names it.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import pickle
import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from fairchem_kit.checkpoints.errors import UnsafeError

# Names that get a placeholder. The real class is not imported.
_INERT = re.compile(
    r"^(pytorch_lightning|lightning|lightning_fabric|omegaconf|submitit|fairchem\.core|ocpmodels)\."
)
_PATHS = re.compile(r"^pathlib\.")
_OLD = b"\x80"  # first byte of torch's format before 1.6, a sequence of pickles
_SHOWN = 5  # names in a message
_PICKLES = 5  # number of pickles in it: magic number, protocol, machine, content, storages


def read(path: str | Path, map_location: torch.device | str = "cpu", unsafe: bool = False) -> Any:
    """The content of a checkpoint file.

    Args:
        path: the file.
        map_location: where its tensors go.
        unsafe: use the unrestricted reader, which runs code in the file.

    Raises:
        UnsafeError: if the file needs ``unsafe``; no code in it was run.
        Exception: many kinds from torch, for a file that is damaged or not from torch.
    """
    path = Path(path)
    if unsafe:
        logging.warning(f"{path} is read with the unrestricted reader, because unsafe was given.")
        return torch.load(path, map_location=map_location, weights_only=False)
    try:
        with _allowed(path):
            return torch.load(path, map_location=map_location, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        if not re.search("nsupported|is blocked|Can only", str(error)) or not _is_pickled(path):
            raise
        raise UnsafeError(path, _asked_for(path) or _first_line(error)) from None


def is_old_format(path: Path) -> bool:
    """Whether a file is of torch's format before 1.6, which has no checksums."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(1) == _OLD
    return False


def names_in(path: Path) -> set[str]:
    """Names of the Python objects in a checkpoint; none of them is imported."""
    found: set[str] = set()
    # a damaged pickle raises any of these; torch reports what is wrong with the file
    with contextlib.suppress(ValueError, EOFError, OSError, KeyError, IndexError, zipfile.error):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith("data.pkl"):
                        with archive.open(name) as file:
                            found.update(_names(file))  # type: ignore[arg-type]
        elif is_old_format(path):
            with path.open("rb") as file:
                for _ in range(_PICKLES):
                    found.update(_names(file))
    return found


def _names(file: BinaryIO) -> Iterator[str]:
    strings: list[str] = []
    for operation, argument, _ in pickletools.genops(file):
        if operation.name in ("GLOBAL", "INST"):
            yield _today(*argument.split(" ", 1))
        elif operation.name == "STACK_GLOBAL" and len(strings) > 1:
            yield _today(*strings[-2:])
        elif isinstance(argument, str):
            strings.append(argument)


def _today(module: str, name: str) -> str:
    """Python 3's name for a name of Python 2, as written by protocol 2."""
    module, name = NAME_MAPPING.get((module, name), (module, name))
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


class _Inert:
    """Placeholder for a class whose code must not run: it takes any arguments and does nothing."""

    def __init__(self, *given: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, Mapping) else {"state": state})


def _stand_ins(path: Path) -> list[Any]:
    """What the restricted reader may use for the names in this file, in addition to torch's own."""
    allowed: list[Any] = [
        *(argparse.Namespace, np.dtype, np.ndarray),
        *(int, float, str, bool, list, dict, set, tuple),
        *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")),
    ]
    allowed.append(_named(lambda *_: {}, "collections.defaultdict"))
    for function in numpy_rebuilders():
        for core in ("core", "_core"):  # depends on the NumPy version that wrote the file
            allowed.append(_named(function, f"numpy.{core}.multiarray.{function.__name__}"))
    for name in names_in(path):
        module, _, last = name.rpartition(".")
        if _PATHS.match(name):
            allowed.append(_named(lambda *parts: "/".join(map(str, parts)), name))
        elif _INERT.match(name):
            names = {"__module__": module, "__qualname__": last}
            allowed.append(type(last, (_Inert,), names))
    return allowed


def _named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """``function`` under its name in a pickle."""

    def call(*given: Any) -> Any:
        return function(*given)

    call.__module__, _, call.__name__ = name.rpartition(".")
    call.__qualname__ = call.__name__
    return call


@contextlib.contextmanager
def _allowed(path: Path) -> Iterator[None]:
    """Allow the placeholders in torch's restricted reader, if torch supports it (from 2.4)."""
    serialization = torch.serialization
    if not hasattr(serialization, "add_safe_globals"):
        yield
        return
    before: Iterable[Any] = list(serialization.get_safe_globals())
    serialization.add_safe_globals(_stand_ins(path))
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(list(before))


def numpy_rebuilders() -> tuple[Any, Any]:
    """The functions named in pickles of a NumPy number and of an array. Their module depends on
    NumPy's version, and numpy._core of NumPy 1.26 is empty until something is imported from it."""
    return np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0]


def _is_pickled(path: Path) -> bool:
    return zipfile.is_zipfile(path) or is_old_format(path)


def _asked_for(path: Path) -> str:
    """The first few names in a file that the restricted reader does not accept."""
    known = {f"{one.__module__}.{one.__qualname__}" for one in _stand_ins(path)}
    names = sorted(
        name
        for name in names_in(path) - known - {"collections.OrderedDict", "collections.Counter"}
        if not name.startswith("torch.")
    )
    more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([*names[:_SHOWN], *more])


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if "nsupported" in line), lines[0])[:120]
