"""A GPU that is not there: within `pretend_gpu()` code that would run on CUDA runs on the CPU.

Tensors that were moved to "cuda:0", or made there, say that they are there; an operation of such a
tensor with one that was left on the CPU fails as it would on a GPU. So what CUDA's users would meet
first, a tensor on the wrong device, is found on machines without one. Kernels, numbers, speed and
streams are not: only a GPU shows those.

Where a tensor is, is kept by its storage: views are where their base is, and what an operation
makes is where its arguments are. Operations are seen below autograd, in backward too.
"""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ndem_ocp.models.equiformer import constants

GPU = torch.device("cuda:0")
aten = torch.ops.aten
_TORCH = os.path.dirname(torch.__file__)
# What takes tensors of two devices on CUDA as well.
_COPIES = {aten.copy_.default, aten._to_copy.default}
_INDEXED = {
    *(aten.index.Tensor, aten.index_put.default, aten.index_put_.default),
    aten._index_put_impl_.default,
}


# Python waits for the GPU where it needs a shape or a value, and for what moves to the CPU; and for
# what comes from the CPU's ordinary memory: constants, indices.
_WAITS = {
    *(aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default),
    *(aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default),
    *(aten.equal.default, aten.bincount.default, aten.repeat_interleave.Tensor),
}


class WrongDevice(RuntimeError):
    """Tensors of two devices in one operation."""


class _Places:
    """Which storages are on the GPU."""

    def __init__(self) -> None:
        self._known: dict[int, StorageWeakRef] = {}  # a storage that is referred to keeps its key
        self._open: dict[int, StorageWeakRef] = {}
        self.in_backward = False
        self.waits: Counter[str] = Counter()  # by the line of ours or of a library that waits

    def has(self, tensor: Tensor) -> bool:
        found = self._known.get(_key(tensor))
        return found is not None and not found.expired()

    def wait(self) -> None:
        """Python has to wait for the GPU here."""
        frames = [f for f in traceback.extract_stack() if not f.filename.startswith(_TORCH)]
        frame = next(f for f in reversed(frames) if f.filename != __file__)
        self.waits[f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno}"] += 1

    def open(self, tensor: Tensor) -> None:
        """Autograd made zeros on the device of a gradient that cannot be seen from here."""
        self._open[_key(tensor)] = StorageWeakRef(tensor.untyped_storage())

    def is_open(self, tensor: Tensor) -> bool:
        return (ref := self._open.get(_key(tensor))) is not None and not ref.expired()

    def put(self, tensor: Tensor, there: bool) -> None:
        self._open.pop(_key(tensor), None)
        if there:
            self._known[_key(tensor)] = StorageWeakRef(tensor.untyped_storage())
        else:
            self._known.pop(_key(tensor), None)
        if len(self._known) + len(self._open) > 20_000:
            for kept in (self._known, self._open):
                for key in [key for key, ref in kept.items() if ref.expired()]:
                    del kept[key]

    def moved(self, tensor: Tensor, there: bool) -> Tensor:
        if self.has(tensor) == there:
            return tensor
        if not there:
            self.wait()
        with torch._C.DisableTorchFunction():
            copy = tensor.clone()
        self.put(copy, there)
        return copy


def _key(tensor: Tensor) -> int:
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()._cdata


class _Operations(TorchDispatchMode):
    """Refuses operations of tensors on two devices; results are where the arguments are."""

    def __init__(self, places: _Places) -> None:
        super().__init__()
        self.places = places

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [tensor for tensor in tensors if self.places.has(tensor)]
        on_gpu, judged = bool(there), tensors
        if func in _INDEXED:  # indices may be on the CPU, values and what is indexed may not
            judged = [args[0], *(a for a in args[2:3] if isinstance(a, Tensor))]
            on_gpu = any(map(self.places.has, judged))
        here = [t for t in judged if t.dim() > 0 and not self.places.has(t)]
        here = [t for t in here if not self.places.is_open(t)]
        if there and here and func not in _COPIES:
            shapes = [tuple(tensor.shape) for tensor in here]
            raise WrongDevice(f"{func}: cuda:0 and cpu; on the CPU are tensors of shape {shapes}")
        told = kwargs.get("output_size") is not None  # repeat_interleave knows the shape then
        if on_gpu and not told and (func in _WAITS or (func in _INDEXED and _by_mask(args[1]))):
            self.places.wait()
        out = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if on_gpu and func is not aten.copy_.default:
            for tensor in (*made, *filter(self.places.is_open, tensors)):
                self.places.put(tensor, True)
        elif not tensors and self.places.in_backward:
            for tensor in made:
                self.places.open(tensor)
        return out


def _by_mask(indices: list[Tensor | None]) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


class _Functions(TorchFunctionMode):
    """What is said of devices: properties, moves, ``device=`` of functions that make tensors."""

    def __init__(self, places: _Places) -> None:
        super().__init__()
        self.places = places

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        places = self.places
        if func in _PROPERTIES and places.has(args[0]):
            return _PROPERTIES[func]
        if func in (Tensor.numpy, Tensor.__array__) and places.has(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func is Tensor.tolist and places.has(args[0]):
            places.wait()
        if func in (Tensor.__getitem__, Tensor.__setitem__) and places.has(args[0]):
            for _ in filter(self._from_the_host, _parts_of(args[1])):
                places.wait()  # the index goes to the device, from memory that is not pinned
        if func is Tensor.to:
            return self._to(*args, **kwargs)
        if func in (Tensor.cuda, Tensor.cpu):
            return places.moved(args[0], func is Tensor.cuda)
        if func is Tensor.pin_memory:
            return args[0]
        if kwargs.get("device") is not None:
            there = torch.device(kwargs.pop("device")).type == "cuda"
            out = func(*args, **kwargs, device="cpu")
            if there and func in (torch.tensor, torch.as_tensor):
                places.wait()
            return tree_map_only(Tensor, lambda made: self._made(made, there), out)
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and places.is_open(out):
            places.put(out, False)  # made by a call without device=, not by autograd
        if func is Tensor.new_tensor and places.has(args[0]):
            places.put(out, True)
            places.wait()
        return out

    def _from_the_host(self, part: Any) -> bool:
        if isinstance(part, Tensor):
            return part.dim() > 0 and not self.places.has(part)
        return isinstance(part, (list, range)) and len(part) > 0

    def _made(self, tensor: Tensor, there: bool) -> Tensor:
        if tensor.numel() == 0 or self.places.has(tensor):
            self.places.put(tensor, there)
            return tensor
        return self.places.moved(tensor, there)

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        target = kwargs.pop("device", None)
        other = kwargs.pop("other", None)
        rest = []
        for number, argument in enumerate(args):
            if isinstance(argument, Tensor):
                other = argument
            elif number == 0 and isinstance(argument, (str, int, torch.device)):
                target = argument if not isinstance(argument, int) else f"cuda:{argument}"
            elif argument is not None:
                rest.append(argument)
        there = self.places.has(tensor)
        if other is not None:
            there, rest = self.places.has(other), [other.dtype, *rest]
        if target is not None:
            there = torch.device(target).type == "cuda"
        dtype = kwargs.pop("dtype", None) or next(
            (a for a in rest if isinstance(a, torch.dtype)), tensor.dtype
        )
        if there and not self.places.has(tensor) and not kwargs.get("non_blocking", False):
            self.places.wait()
        out = self.places.moved(tensor, there)
        with torch._C.DisableTorchFunction():
            return out.to(dtype, copy=kwargs.get("copy", False))


def _parts_of(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


_PROPERTIES = {
    Tensor.device.__get__: GPU,
    Tensor.is_cuda.__get__: True,
    Tensor.is_cpu.__get__: False,
    Tensor.get_device: 0,
}


class _Event:
    def __init__(self, **_: Any) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: _Event) -> float:
        return 1000 * (other.at - self.at)


@contextlib.contextmanager
def pretend_gpu() -> Iterator[_Places]:
    """Within, there is one GPU as far as Python can see; yields where tensors are."""
    places = _Places()
    functions = _Functions(places)
    run_backward = torch.autograd._engine_run_backward
    load = torch.load

    def backward(*args: Any, **kwargs: Any) -> Any:
        before, places.in_backward = places.in_backward, True
        try:
            with functions:  # torch.autograd.grad comes here with the mode off
                return run_backward(*args, **kwargs)
        finally:
            places.in_backward = before

    def loaded(*args: Any, map_location: Any = None, **kwargs: Any) -> Any:
        found = load(*args, map_location="cpu", **kwargs)
        if map_location is None or torch.device(map_location).type == "cpu":
            return found
        return tree_map_only(Tensor, lambda tensor: places.moved(tensor, True), found)

    autocast, autocast_dtype = torch.autocast, torch.get_autocast_dtype
    usual = autocast_dtype("cuda")

    def of_cuda(device_type: str, *args: Any, **kwargs: Any) -> Any:
        if device_type == "cuda":
            kwargs = {"dtype": autocast_dtype("cuda"), **kwargs}
        return autocast("cpu", *args, **kwargs)

    def nothing(*_: Any, **__: Any) -> None:
        return None

    properties = mock.Mock(total_memory=80 << 30, major=9, minor=0)
    cuda = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: "a GPU that is not there",
        "get_device_properties": lambda *_: properties,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "device": lambda *_: contextlib.nullcontext(),
        "max_memory_allocated": lambda *_: 1 << 20,
        "memory_allocated": lambda *_: 1 << 19,
        "Event": _Event,
    }
    for name in (
        *("_lazy_init", "set_device", "synchronize", "set_rng_state", "manual_seed"),
        *("manual_seed_all", "empty_cache", "reset_peak_memory_stats"),
    ):
        cuda[name] = nothing
    with contextlib.ExitStack() as stack:
        constants.clear()  # of other contexts: where they are is known in theirs
        stack.callback(constants.clear)
        stack.callback(torch.set_autocast_dtype, "cuda", usual)
        for name, value in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch.autograd, "_engine_run_backward", backward))
        stack.enter_context(mock.patch.object(torch, "load", loaded))
        stack.enter_context(mock.patch.object(torch, "autocast", of_cuda))
        cast = torch.is_autocast_enabled
        said = {
            "is_autocast_enabled": lambda *_: cast("cpu"),
            "get_autocast_dtype": lambda kind: autocast_dtype("cpu" if cast("cpu") else kind),
        }
        for name, value in said.items():
            stack.enter_context(mock.patch.object(torch, name, value))
        # checkpointing compares devices from inside functions, where tensors say what they are
        checks = torch.utils.checkpoint._allowed_determinism_checks_to_fns
        shape_and_type = {"default": lambda tensor: {"of": (tensor.shape, tensor.dtype)}}
        stack.enter_context(mock.patch.dict(checks, shape_and_type))
        stack.enter_context(_Operations(places))
        stack.enter_context(functions)
        yield places
