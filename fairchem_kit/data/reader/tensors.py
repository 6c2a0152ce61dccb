"""Building the tensors and arrays of a record from their parts, with every part checked.

Each function here replaces the one named in a pickle; torch's and NumPy's own functions are only
called with values that have been checked.
"""

from __future__ import annotations

import math
import re
import struct
import sys
from typing import Any

import numpy as np

try:
    import torch
except ModuleNotFoundError:  # second views may be made in an environment without torch
    torch = None  # then tensors are read as NumPy arrays

from .errors import Refused

_NUMBERS = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",  # not in NumPy
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}
#: storage classes in records, and the type of their numbers
STORAGE_TYPES: dict[str, Any] = {
    name: np.dtype(kind) if torch is None else getattr(torch, kind)
    for name, kind in _NUMBERS.items()
    if torch is not None or kind != "bfloat16"
}
#: the same types by their own names
NUMBER_TYPES = {_NUMBERS[name]: kind for name, kind in STORAGE_TYPES.items()}
#: the class of these types, and that of tensors
DTYPE, TENSOR = (np.dtype, np.ndarray) if torch is None else (torch.dtype, torch.Tensor)
_REPEATED = 1 << 20  # elements that a tensor may have beyond those stored (stride 0)
_MAX_DIMENSIONS = 16
_ARRAY_TYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,4})")

# What torch.save writes for a storage before its numbers. Pickled tensors of every torch version
# since 1.0 begin like this. Anything else goes the long way in unpickle.py.
_PREFIX = (
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}q\x00(X\x10\x00\x00\x00"
    b"protocol_versionq\x01M\xe9\x03X\r\x00\x00\x00little_endianq\x02\x88X\n\x00\x00\x00"
    b"type_sizesq\x03}q\x04(X\x05\x00\x00\x00shortq\x05K\x02X\x03\x00\x00\x00intq\x06K\x04X\x04"
    b"\x00\x00\x00longq\x07K\x04uu."
)
_STORAGE = re.compile(
    rb"\x80\x02\(X\x07\x00\x00\x00storageq\x00ctorch\n(\w{1,24})\nq\x01X[\x01-\x20]\x00\x00\x00"
    rb"(\d{1,32})q\x02X[\x03-\x08]\x00\x00\x00(?:cpu|cuda:\d)q\x03(K.|M..|J....)Ntq\x04Q\."
    rb"\x80\x02\]q\x00X[\x01-\x20]\x00\x00\x00(\d{1,32})q\x01a\.",
    re.DOTALL,
)


class Part:
    """A replacement object that a pickle cannot change once it is made."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise Refused("pickle", "a state for an object that has none")


class Storage(Part):
    """The numbers of a tensor before it has a shape: ``tensor`` (n,) owns its memory."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor


class Made(Part):
    """Holds a tensor or array until the record is complete; a pickle could set the state of torch's
    own."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def quick_storage(raw: bytes) -> Storage | None:
    """The storage in the bytes of ``torch.save``; None if they have another form."""
    if not raw.startswith(_PREFIX):
        return None
    match = _STORAGE.match(raw, len(_PREFIX))
    if match is None or match[2] != match[4]:
        return None
    dtype = STORAGE_TYPES.get(match[1].decode("ascii"))
    if dtype is None:
        return None
    return numbers_of(raw, match.end(), dtype, int.from_bytes(match[3][1:], "little"))


def numbers_of(raw: bytes, start: int, dtype: Any, count: int) -> Storage:
    """The numbers after the header of a stored tensor: their count, then the numbers.

    Raises:
        Refused: another count than expected, or too few bytes.
    """
    size = count * dtype.itemsize
    stored = raw[start : start + 8]
    if len(stored) < 8 or struct.unpack("<q", stored)[0] != count:
        raise Refused("tensor", f"a tensor that should hold {count} numbers does not")
    data = bytearray(raw[start + 8 : start + 8 + size])
    if len(data) != size or sys.byteorder != "little":
        raise Refused("tensor", f"a tensor of {size} bytes ends after {len(data)}")
    library = np if torch is None else torch
    if not size:
        return Storage(library.empty(0, dtype=dtype))
    if dtype == library.bool:  # a byte that is neither 0 nor 1 is not a bool
        return Storage(library.frombuffer(data, dtype=library.uint8) != 0)
    return Storage(library.frombuffer(data, dtype=dtype))


def rebuild_tensor(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> Made:
    """Stands in for ``torch._utils._rebuild_tensor_v2`` (and ``_rebuild_tensor``).

    Raises:
        Refused: a shape that reaches outside the storage.
    """
    if type(storage) is not Storage or hooks or metadata:
        raise Refused("tensor", "a tensor that is not built from numbers")
    shape = _whole_numbers(size, "shape")
    steps = _whole_numbers(stride, "stride")
    (first,) = _whole_numbers((offset,), "offset")
    stored = len(storage.tensor)
    elements = math.prod(shape)
    if len(shape) != len(steps) or len(shape) > _MAX_DIMENSIONS:
        raise Refused("tensor", f"a tensor of shape {shape} with strides {steps}")
    last = first + sum((n - 1) * step for n, step in zip(shape, steps))
    if elements and (last >= stored or elements > stored + _REPEATED):
        raise Refused("tensor", f"a tensor of shape {shape} on {stored} numbers")
    if torch is None:
        return Made(_strided(storage.tensor, shape, steps, first))
    if not elements:
        tensor = storage.tensor.new_empty(shape)
    else:
        tensor = torch.as_strided(storage.tensor, shape, steps, first)
    if requires_grad is True and tensor.is_floating_point():
        tensor.requires_grad_(True)
    return Made(tensor)


def _strided(
    numbers: np.ndarray, shape: tuple[int, ...], steps: tuple[int, ...], first: int
) -> np.ndarray:
    """The same view, with checked bounds, without torch."""
    if not math.prod(shape):
        return np.empty(shape, dtype=numbers.dtype)
    size = numbers.itemsize
    return np.lib.stride_tricks.as_strided(
        numbers[first:], shape, tuple(step * size for step in steps)
    )


def _whole_numbers(values: Any, what: str) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)):
        raise Refused("tensor", f"a tensor whose {what} is not a list of numbers")
    for value in values:
        if type(value) is not int or not 0 <= value < 2**40:
            raise Refused("tensor", f"a tensor with a wrong {what}")
    return tuple(values)


class ArrayType:
    """Stands in for ``numpy.dtype``: plain numbers and text only."""

    def __init__(self, code: Any = None, align: Any = False, copy: Any = True) -> None:
        if not isinstance(code, str) or not _ARRAY_TYPE.fullmatch(code):
            raise Refused("array", "a NumPy array of something else than numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) >= 5 else None
        if order not in ("<", ">", "|", "=") or any(item is not None for item in state[2:5]):
            raise Refused("array", "a NumPy array of a type with fields")
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


class Array:
    """Stands in for a NumPy array until the whole record is there: see :attr:`value`."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused("array", "a NumPy array without its parts")
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


def new_array(*arguments: Any) -> Array:
    """Stands in for ``numpy.core.multiarray._reconstruct``; the arguments are always the same."""
    return Array()


def array_from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> Made:
    """Stands in for ``numpy.core.numeric._frombuffer`` (protocol 5)."""
    return Made(_array(data, dtype, shape, order))


def array_scalar(dtype: Any, data: Any = b"") -> Any:
    """Stands in for ``numpy.core.multiarray.scalar``."""
    return _array(data, dtype, (1,), "C")[0]


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if isinstance(data, str):  # bytes in a pickle that Python 2 wrote
        data = data.encode("latin1")
    if type(dtype) is not ArrayType or not isinstance(data, (bytes, bytearray)):
        raise Refused("array", "a NumPy array of something else than numbers")
    sizes = _whole_numbers(shape if isinstance(shape, tuple) else (shape,), "shape")
    if order not in ("C", "F") or len(sizes) > _MAX_DIMENSIONS:
        raise Refused("array", f"a NumPy array of shape {sizes}")
    if math.prod(sizes) * dtype.dtype.itemsize != len(data):
        raise Refused("array", f"a NumPy array of shape {sizes} with {len(data)} bytes")
    if dtype.dtype.itemsize == 0 or not data:
        return np.empty(sizes, dtype=dtype.dtype)
    array = np.frombuffer(bytearray(data), dtype=dtype.dtype).reshape(sizes, order=order)
    if array.dtype == np.bool_:
        return array.view(np.uint8) != 0
    # torch takes arrays in the machine's byte order only
    return array.astype(array.dtype.newbyteorder("="), copy=False, order="K")
