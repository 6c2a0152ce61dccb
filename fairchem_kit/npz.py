"""Checking npz files from others before anything reads them with pickle allowed.

fairchem reads ``metadata.npz`` and linear references with ``allow_pickle=True``, which runs code in
arrays of Python objects and reads a file that is not an archive as a pickle.
"""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from fairchem_kit.errors import UserError
from fairchem_kit.files import InputError, existing_file

#: what numpy, zipfile and zlib raise for a damaged file, when it is opened or an array is read
DAMAGED = (
    *(OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error),
    *(SyntaxError, tokenize.TokenError),  # of an array's header, which is an expression of Python
)
_ARCHIVE = (b"PK\x03\x04", b"PK\x05\x06")  # first bytes by which numpy knows an npz
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npz(path: str | Path, error: type[UserError] = InputError) -> dict[str, np.ndarray]:
    """The arrays of an npz file by name.

    Raises:
        InputError: or ``error``, as :func:`check_npz`, or if an array is damaged.
    """
    try:
        with np.load(check_npz(path, error), allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except UserError:
        raise
    except Exception as problem:  # numpy, zipfile and zlib raise many kinds
        raise error(f"{path}: this npz file is damaged ({problem}); make it again.") from problem


def check_npz(path: str | Path, error: type[UserError] = InputError) -> Path:
    """Return ``path`` if it is an npz file of numbers and text; only array headers are read.

    Raises:
        InputError: or ``error``, if the file does not exist, is not an npz file, is damaged, or
            contains an array of Python objects.
    """
    path = existing_file(path, error)
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start not in _ARCHIVE:
            raise error(
                f"{path}: this is not an npz file (it starts with {start!r}); it was not read."
            )
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    header = _HEADERS.get(np.lib.format.read_magic(member))
                    if header is None or header(member)[2].hasobject:
                        raise error(
                            f"{path}: the array {name.removesuffix('.npy')!r} contains Python "
                            "objects, and reading these can run any code that their author put "
                            "there, so it was not read. Save it as numbers or text."
                        )
    except UserError:
        raise
    except DAMAGED as problem:
        raise error(f"{path}: this is not an npz file, or it is damaged ({problem}).") from problem
    return path
