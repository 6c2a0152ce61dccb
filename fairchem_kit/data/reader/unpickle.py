"""Loading a pickled record without running code from the file.

A pickle can call any function that can be imported. Here only names in a table are accepted, and
they stand for functions and classes of this package: records consist of plain numbers, text,
containers, tensors and arrays, written by any version of torch_geometric, torch or NumPy.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import Refused
from .opcodes import scan
from .tensors import (
    DTYPE,
    NUMBER_TYPES,
    STORAGE_TYPES,
    TENSOR,
    Array,
    ArrayType,
    Made,
    Part,
    Storage,
    array_from_buffer,
    array_scalar,
    new_array,
    numbers_of,
    quick_storage,
    rebuild_tensor,
)

_MAX_NESTING = 8
_MAX_ITEMS = 100_000
_PLAIN = (int, float, complex, str, bytes, bool, type(None), DTYPE, np.generic)


class Bag:
    """Replaces an object of torch_geometric: stores its state and does nothing with it."""

    state: Any = None

    def __new__(cls, *arguments: Any, **more: Any) -> Bag:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class DataBag(Bag):
    """``Data``: a structure."""


class StoreBag(Bag):
    """``GlobalStorage``: the fields of a structure since torch_geometric 2."""


class _Nothing(Part):
    """Replaces classes that are named in a structure without objects of them."""

    def __new__(cls, *arguments: Any) -> _Nothing:
        raise Refused("pickle", "an object of torch_geometric that is not a structure")


class _Call(Part):
    """A function of the table; a bare one could be changed by a pickle (its defaults, say)."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


def _new_object(cls: Any, base: Any = object, state: Any = None) -> Any:
    """Stands in for ``copyreg._reconstructor``, which protocols 0 and 1 use."""
    if isinstance(cls, type) and issubclass(cls, Bag):
        return cls()
    raise Refused("pickle", "an object that does not belong in a record")


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Stands in for ``_codecs.encode``, which protocols 0 to 2 use for bytes."""
    if isinstance(text, str) and encoding == "latin1":
        return text.encode("latin1")
    raise Refused("pickle", "bytes in an unknown form")


def _as_bytes(value: Any = b"") -> bytes:
    """Stands in for ``bytes`` and ``bytearray``; a number would ask for that much memory."""
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, list) and all(type(i) is int and 0 <= i < 256 for i in value):
        return bytes(value)
    raise Refused("pickle", "bytes in an unknown form")


def _as_bytearray(value: Any = b"", encoding: Any = "latin1") -> bytearray:
    return bytearray(_encode(value, encoding) if isinstance(value, str) else _as_bytes(value))


def _container(kind: type) -> _Call:
    def build(items: Any = ()) -> Any:
        if not isinstance(items, (list, tuple, set, frozenset)):
            raise Refused("pickle", f"a {kind.__name__} in an unknown form")
        return kind(items)

    return _Call(build)


def load_storage(raw: Any) -> Storage:
    """Stands in for ``torch.storage._load_from_bytes``, which is ``torch.load`` on the inside."""
    if not isinstance(raw, (bytes, bytearray)):
        raise Refused("tensor", "a tensor that is not bytes")
    raw = bytes(raw)
    return quick_storage(raw) or _long_way(raw)


def _long_way(raw: bytes) -> Storage:
    """A storage with an unusual header: five pickles, then numbers."""
    position, parts = 0, []
    for number in range(5):
        end = scan(raw, position, storage=number == 3)
        parts.append(_StorageUnpickler(io.BytesIO(raw[position:end])).load())
        position = end
    magic, version, system, storage, keys = parts
    known = magic == 0x1950A86A20F9469CFC6C and version == 1001
    if not known or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("tensor", "a tensor in an unknown format")
    if not isinstance(storage, _Announced) or keys != [storage.key]:
        raise Refused("tensor", "a tensor in an unknown format")
    return numbers_of(raw, position, storage.dtype, storage.count)


class _Announced:
    """What the header of a stored tensor says about its numbers."""

    def __init__(self, identity: Any) -> None:
        if not isinstance(identity, tuple) or len(identity) not in (5, 6):
            raise Refused("tensor", "a tensor in an unknown format")
        word, self.dtype, self.key, _, self.count = identity[:5]
        if word != "storage" or any(item is not None for item in identity[5:]):
            raise Refused("tensor", "a tensor in an unknown format")
        sound = isinstance(self.dtype, DTYPE) and type(self.count) is int
        if not sound or not 0 <= self.count < 2**40:
            raise Refused("tensor", "a tensor in an unknown format")


_TABLE: dict[tuple[str, str], Any] = {
    ("torch_geometric.data.data", "Data"): DataBag,
    ("torch_geometric.data", "Data"): DataBag,
    ("torch_geometric.data.storage", "GlobalStorage"): StoreBag,
    ("torch_geometric.data.data", "DataEdgeAttr"): _Nothing,
    ("torch_geometric.data.data", "DataTensorAttr"): _Nothing,
    ("torch._utils", "_rebuild_tensor_v2"): _Call(rebuild_tensor),
    ("torch._utils", "_rebuild_tensor"): _Call(rebuild_tensor),
    ("torch.storage", "_load_from_bytes"): _Call(load_storage),
    ("torch", "Size"): _container(tuple),
    ("collections", "OrderedDict"): _container(collections.OrderedDict),
    ("copyreg", "_reconstructor"): _Call(_new_object),
    ("copy_reg", "_reconstructor"): _Call(_new_object),
    ("_codecs", "encode"): _Call(_encode),
    ("numpy", "ndarray"): _Nothing,
    ("numpy", "dtype"): ArrayType,
}
for _module in ("numpy.core", "numpy._core"):
    _TABLE[f"{_module}.multiarray", "_reconstruct"] = _Call(new_array)
    _TABLE[f"{_module}.multiarray", "scalar"] = _Call(array_scalar)
    _TABLE[f"{_module}.numeric", "_frombuffer"] = _Call(array_from_buffer)
for _module in ("builtins", "__builtin__"):
    _TABLE[_module, "object"] = object
    _TABLE[_module, "bytes"] = _Call(_as_bytes)
    _TABLE[_module, "bytearray"] = _Call(_as_bytearray)
    for _kind in (set, frozenset, list, tuple):
        _TABLE[_module, _kind.__name__] = _container(_kind)
for _name in ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64"):
    if _name in NUMBER_TYPES:
        _TABLE["torch", _name] = NUMBER_TYPES[_name]
_STORAGES = {("torch", name): dtype for name, dtype in STORAGE_TYPES.items()}
_STORAGES["torch.storage", "UntypedStorage"] = STORAGE_TYPES["UntypedStorage"]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _TABLE[module, name]
        except KeyError:
            known = f"{module}.{name}"[:100]
            raise Refused(
                "pickle", f"it names {known!r}, which does not belong in a record"
            ) from None

    def persistent_load(self, identity: Any) -> Any:
        raise Refused("pickle", "an operation that does not belong in a record")


class _StorageUnpickler(_Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _STORAGES.get((module, name)) or super().find_class(module, name)

    def persistent_load(self, identity: Any) -> Any:
        return _Announced(identity)


def _load(raw: bytes) -> Any:
    """The object in a pickle, with replacement objects.

    Raises:
        Refused: whatever is wrong with it.
    """
    try:
        scan(raw)
        return _Unpickler(io.BytesIO(raw)).load()
    except Refused:
        raise
    except (
        Exception
    ) as error:  # a damaged pickle can raise anything, including MemoryError and RecursionError
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise Refused("pickle", f"cannot be unpickled ({reason})") from None


def load_fields(raw: bytes | None) -> dict[str, Any]:
    """The fields of a pickled ``Data``, written by any version of torch_geometric.

    Args:
        raw: the value of a record; None if there is none.

    Returns:
        Field -> number, text, container, tensor or array; fields that are None are left out.

    Raises:
        Refused: missing, damaged, hostile, or not a ``Data``.
    """
    if raw is None:
        raise Refused("missing", "missing")
    data = _load(raw)
    if not isinstance(data, DataBag) or not isinstance(data.state, dict):
        raise Refused("pickle", "not a torch_geometric Data")
    fields = data.state
    if "_store" in fields:
        store = fields["_store"]
        inside = store.state if isinstance(store, StoreBag) else None
        fields = inside.get("_mapping") if isinstance(inside, dict) else None
        if not isinstance(fields, dict):
            raise Refused("pickle", "a torch_geometric Data without its fields")
    result, left = {}, [_MAX_ITEMS]
    for key, value in fields.items():
        if not isinstance(key, str) or not key.isidentifier():
            raise Refused("pickle", "a field whose name is not a name")
        if value is not None and not key.startswith("_"):  # _...: torch_geometric's own
            result[key] = _plain(value, left)
    return result


def _plain(value: Any, left: list[int], depth: int = 0) -> Any:
    """A value with arrays in the place of their stand-ins; refuses whatever else is left.

    ``left`` counts down: containers that hold one another can be endless in a few bytes.
    """
    left[0] -= 1
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (Made, Array)) and value.value is not None:
        return value.value
    if isinstance(value, bytearray):
        return bytes(value)
    if depth < _MAX_NESTING and left[0] > 0:
        if type(value) in (list, tuple, set, frozenset):
            return type(value)(_plain(item, left, depth + 1) for item in value)
        named = type(value) in (dict, collections.OrderedDict)
        if named and all(isinstance(key, (str, int)) for key in value):
            items = ((key, _plain(item, left, depth + 1)) for key, item in value.items())
            return type(value)(items)
    raise Refused("pickle", "a field that is not a number, text, container, tensor or array")


def load_integer(raw: bytes) -> int:
    """The whole number that a file keeps under ``length``.

    Raises:
        Refused: something else.
    """
    value = _load(raw)
    if isinstance(value, Made) and isinstance(value.value, TENSOR):
        value = value.value.item() if math.prod(value.value.shape) == 1 else None
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 0 <= value < 2**40:
        return int(value)
    raise Refused("length", "it is not a whole number")
