"""Times of one step and of its phases, on CPU and CUDA."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn


class Timing(NamedTuple):
    """One step."""

    wall_s: float  # from a synchronised device to a synchronised device
    process_s: float  # processor time of all threads of this process
    phases_s: dict[str, float]  # name -> seconds; phases may lie within others
    submitted_s: float = 0.0  # until this process had nothing left to do but wait for the device


class Stopwatch:
    """Phases are marked without waiting for the device: with CUDA events, read at the end.

    Synchronising at every phase would remove the overlap of launches and kernels in a step, and so
    change the result.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._spans: list[tuple[str, Any, Any]] = []
        self._began = (0.0, 0.0)

    def start(self) -> None:
        self._spans = []
        synchronize(self.device)
        self._began = (time.perf_counter(), time.process_time())

    def stop(self) -> Timing:
        submitted = time.perf_counter()
        synchronize(self.device)
        wall, process = time.perf_counter(), time.process_time()
        phases: dict[str, float] = {}
        for name, begin, end in self._spans:
            phases[name] = phases.get(name, 0.0) + self._between(begin, end)
        began, process_began = self._began
        return Timing(wall - began, process - process_began, phases, submitted - began)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin = self._mark()
        try:
            yield
        finally:
            self._spans.append((name, begin, self._mark()))

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, begin: Any, end: Any) -> float:
        if self.device.type != "cuda":
            return end - begin
        return begin.elapsed_time(end) / 1000.0


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def timed_calls(
    owner: Any, method: str, watch: Stopwatch, name: str, seen: Callable[[Any], None] | None = None
) -> Iterator[None]:
    """Context in which each call of ``owner.method`` is a phase; does nothing if it does not exist.

    Args:
        owner: an object or a class.
        method: its name there.
        watch: times the calls.
        name: of the phase.
        seen: called with each result.
    """
    original = getattr(owner, method, None)
    if original is None:
        yield
        return

    def timed(*args: Any, **kwargs: Any) -> Any:
        with watch.phase(name):
            result = original(*args, **kwargs)
        if seen is not None:
            seen(result)
        return result

    own = method in vars(owner)
    setattr(owner, method, timed)
    try:
        yield
    finally:
        if own:
            setattr(owner, method, original)
        else:
            delattr(owner, method)


def parameters_of(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())
