"""The random number generators of a process, as plain values that a checkpoint can hold."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def rng_state(device: torch.device) -> dict[str, Any]:
    """State of Python's, numpy's, torch's and, on a GPU, CUDA's generator of this process."""
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 (whoever uses it)
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Put the generators back to a state of :func:`rng_state`."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


@contextlib.contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """What is drawn inside leaves no trace: the generators are put back at the end."""
    before = rng_state(device)
    try:
        yield
    finally:
        set_rng_state(before, device)
