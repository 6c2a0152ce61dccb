"""Reading a checkpoint file without running what it may contain.

A checkpoint is a pickle, and a pickle may call anything. Files are read with torch's restricted
reader. numpy's numbers are allowed; classes of Lightning, omegaconf, submitit and fairchem, which
training code leaves in checkpoints, are read as empty stand-ins that carry no code, and paths as
text, so none of these packages has to be installed. Everything else is refused by name.
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

from ndem_ocp.checkpoints.errors import UnsafeError

# Names that get a stand-in. Nothing of the real class is imported.
_INERT = re.compile(
    r"^(pytorch_lightning|lightning|lightning_fabric|omegaconf|submitit|fairchem\.core|ocpmodels)\."
)
_PATHS = re.compile(r"^pathlib\.")
_OLD = b"\x80"  # first byte of torch's format before 1.6: pickles, one after the other
_SHOWN = 5  # names in a message
_PICKLES = 5  # in that format: magic number, protocol, machine, content, storages


def read(path: str | Path, map_location: torch.device | str = "cpu", unsafe: bool = False) -> Any:
    """What a checkpoint file holds.

    Args:
        path: the file.
        map_location: where its tensors go.
        unsafe: read it with the unrestricted reader, which runs code that the file contains.

    Raises:
        UnsafeError: if the file needs ``unsafe``; nothing in it was run.
        Exception: many kinds of torch's, for a file that is damaged or none of torch's.
    """
    path = Path(path)
    if unsafe:
        logging.warning(f"{path} is read with the unrestricted reader (unsafe), as you asked.")
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
    """Names of the Python objects that a checkpoint asks for; none of them is imported."""
    found: set[str] = set()
    # a damaged pickle raises any of these; torch says what is wrong with the file
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
    """Python 2's names, which protocol 2 writes, as Python 3 has them."""
    module, name = NAME_MAPPING.get((module, name), (module, name))
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


class _Inert:
    """Stands for a class whose code is not wanted: it takes anything and does nothing."""

    def __init__(self, *given: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, Mapping) else {"state": state})


def _stand_ins(path: Path) -> list[Any]:
    """What the restricted reader may use for the names in this file, beside torch's own."""
    allowed: list[Any] = [
        *(argparse.Namespace, np.dtype, np.ndarray),
        *(int, float, str, bool, list, dict, set, tuple),
        *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")),
    ]
    allowed.append(_named(lambda *_: {}, "collections.defaultdict"))
    for function in numpy_rebuilders():
        for core in ("core", "_core"):  # where it lives depends on the NumPy that wrote the file
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
    """``function`` under the name by which a pickle asks for it."""

    def call(*given: Any) -> Any:
        return function(*given)

    call.__module__, _, call.__name__ = name.rpartition(".")
    call.__qualname__ = call.__name__
    return call


@contextlib.contextmanager
def _allowed(path: Path) -> Iterator[None]:
    """Let torch's restricted reader take the stand-ins, where it can be told so (torch 2.4)."""
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
    """The functions that pickles of a NumPy number and of an array name: where they live depends on
    NumPy's version, and numpy._core of NumPy 1.26 is empty until something is imported from it."""
    return np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0]


def _is_pickled(path: Path) -> bool:
    return zipfile.is_zipfile(path) or is_old_format(path)


def _asked_for(path: Path) -> str:
    """The names in a file that the restricted reader does not take, the first few of them."""
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
