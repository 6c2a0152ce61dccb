"""Triton kernels for NVIDIA and AMD GPUs; torch code on all other devices and as their reference.

Kernels are used in float32, bfloat16 and float16 if Triton is installed (torch's GPU builds include
it). Before a kernel is first used for given sizes and a dtype, its values and gradients are
compared with those of the torch code on a few rows. If they differ, or if it does not compile, a
warning says so and the torch code is used. ``NDEM_KERNELS=0`` in the environment switches all
kernels off.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

TYPES = (torch.float32, torch.bfloat16, torch.float16)
# largest relative difference on a few rows: above rounding, far below a mistake
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}
ALLOWED_TF32 = 0.01

_off = 0
_agreed: dict[object, bool] = {}


@cache
def _triton() -> bool:
    built_for_one = bool(torch.version.cuda or torch.version.hip)
    return built_for_one and importlib.util.find_spec("triton") is not None


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """Run torch's code in this context, for comparisons."""
    global _off
    _off += 1
    try:
        yield
    finally:
        _off -= 1


def usable(like: Tensor) -> bool:
    """Whether kernels can be used for tensors like this one."""
    wanted = not _off and os.environ.get("NDEM_KERNELS", "1") != "0"
    return wanted and like.is_cuda and like.dtype in TYPES and _triton()


def agrees(
    name: str,
    like: Tensor,
    sizes: tuple[object, ...],
    compare: Callable[[], list[tuple[Tensor, Tensor]]],
) -> bool:
    """Whether to use a kernel; tested once for each name, dtype, device and sizes.

    Args:
        name: of the kernel, for the warning.
        like: an input of the kernel.
        sizes: the sizes it is compiled for.
        compare: returns pairs of the kernel's results on a few rows and the expected ones.
    """
    if not usable(like):
        return False
    products = torch.get_float32_matmul_precision()
    key = (name, like.dtype, like.device, products, sizes)
    if key not in _agreed:
        _agreed[key] = _compared(name, like.dtype, products, compare)
    return _agreed[key]


def _compared(
    name: str, dtype: torch.dtype, products: str, compare: Callable[[], list[tuple[Tensor, Tensor]]]
) -> bool:
    allowed = ALLOWED[dtype]
    if dtype == torch.float32 and products != "highest":
        allowed = ALLOWED_TF32
    try:
        with outside_the_graph():
            errors = [
                float(
                    (found.double() - expected.double()).norm()
                    / expected.double().norm().clamp_min(1e-12)
                )
                for found, expected in compare()
            ]
    except torch.cuda.OutOfMemoryError:  # of the step, which says nothing about the kernel
        raise
    except Exception as error:  # from the compiler, the driver, or too little shared memory
        problem = f"{type(error).__name__}: {error}"[:300]
    else:
        if all(error <= allowed for error in errors):  # False if there is a NaN
            return True
        problem = f"it differs from torch's code by {max(errors):.1e} (allowed: {allowed:.0e})"
    logging.warning(f"The {name} kernel is not used on this machine: {problem}")
    return False


@contextlib.contextmanager
def outside_the_graph() -> Iterator[None]:
    """Enable autograd, whatever the surrounding context has set.

    Activation checkpointing counts the tensors that are saved in a layer, but not those saved here.
    """

    def same(tensor: Tensor) -> Tensor:
        return tensor

    own = torch.autograd.graph.saved_tensors_hooks(same, same)
    with torch.inference_mode(False), torch.enable_grad(), own:
        yield


def on_device_of(like: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Within, Triton launches kernels on the device of a tensor.

    Otherwise it takes the current device, which is another one for a model on cuda:1 if
    torch.cuda.set_device has not been called.
    """
    return torch.cuda.device_of(like)


def both(
    kernel: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: list[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Pairs of values and gradients: of a kernel, and of torch's code."""
    found = []
    for function in (kernel, reference):
        leaves = [each.detach().clone().requires_grad_() for each in inputs]
        out = function(*leaves)
        out = out if isinstance(out, tuple) else (out,)
        weights = [wave(tuple(each.shape), each, 2.0) for each in out]
        gradients = torch.autograd.grad(out, leaves, weights)
        found.append([each.detach() for each in (*out, *gradients)])
    return list(zip(*found))


def wave(shape: tuple[int, ...], like: Tensor, phase: float = 0.0) -> Tensor:
    """Deterministic test values, so that the random numbers of a run are not affected."""
    count = 1
    for size in shape:
        count *= size
    angle = torch.arange(count, device=like.device, dtype=torch.float64) * 1.7 + phase
    return torch.sin(angle).view(shape).to(like.dtype)
