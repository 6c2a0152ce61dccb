"""What a step costs: seconds, atoms per second, memory.

Logged during training whenever the console prints a line (``--print-every``), averaged over the
steps since the last line:

``s_per_step``          from requesting a batch to the end of the optimizer's step, without
                        validation, checkpoints and logging
``atoms_per_s``         on all ranks, without the atoms of second views
``structures_per_s``    on all ranks
``data_share_of_time``  fraction of the time spent waiting for batches, on rank 0
``memory_GB``           largest peak of any rank since the start: torch's allocations on a GPU,
                        resident memory of the process on a CPU
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator

import torch
from fairchem.core.common import distutils
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_kit.training.component import Call, Component


class Costs(Component):
    """Logs what a step costs.

    Attributes:
        clock: times of the steps since the last line.
        constants: additional quantities for every line, by name.
    """

    name = "costs"

    def read(self) -> None:
        self.clock = Clock()
        self.constants: dict[str, float] = {}

    def loader_ready(self) -> None:
        self.clock.begin()

    def between_steps(self, last: bool) -> None:
        self.clock.begin()

    def before_forward(self, call: Call) -> None:
        if self.trainer.model.training:
            self.clock.got(call.batch)

    def after_backward(self, taken: bool) -> None:
        if not self.is_printed():
            self.clock.end()
            return
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize(self.trainer.device)
        self.clock.end()
        self._log()

    def is_printed(self) -> bool:
        """Whether a line is printed for this step."""
        return self.trainer.step % self.config["cmd"]["print_every"] == 0

    def _log(self) -> None:
        clock, self.clock = self.clock, Clock()
        trainer = self.trainer
        if not clock.steps:
            return
        ranks = distutils.gather_objects((*clock.counts(), peak_memory(trainer.device)))
        if trainer.logger is None:
            return
        atoms, structures, memory = zip(*ranks)
        costs = {
            "s_per_step": clock.seconds / clock.steps,
            "atoms_per_s": sum(atoms) / clock.seconds,
            "structures_per_s": sum(structures) / clock.seconds,
            "data_share_of_time": clock.waited / clock.seconds,
            "memory_GB": max(memory) / 1e9,
            **self.constants,
        }
        trainer.logger.log(costs, step=trainer.step, split="train")


class Clock:
    """Accumulates the time of the steps between two printed lines."""

    def __init__(self) -> None:
        self.steps, self.seconds, self.waited = 0, 0.0, 0.0
        self._structures = 0
        self._atoms: Tensor | int = 0
        self._began: float | None = None

    def begin(self) -> None:
        """The next batch is requested."""
        self._began = time.perf_counter()
        self._waiting = True

    def got(self, batch: Batch) -> None:
        """The batch has arrived."""
        if self._began is not None and self._waiting:
            self.waited += time.perf_counter() - self._began
            self._waiting = False
        self._structures += batch.natoms.numel()
        self._atoms = self._atoms + batch.natoms.sum()  # on its device; read once per line

    def end(self) -> None:
        """The optimizer's step is done."""
        if self._began is not None:
            self.seconds += time.perf_counter() - self._began
            self.steps += 1
            self._began = None

    def counts(self) -> tuple[int, int]:
        """Atoms and structures so far."""
        return int(self._atoms), self._structures

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """What is done in this context takes no time."""
        paused = time.perf_counter()
        try:
            yield
        finally:
            if self._began is not None:
                self._began += time.perf_counter() - paused


def peak_memory(device: torch.device) -> int:
    """Peak in bytes of torch's allocations on a GPU, or of the resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # it is in kilobytes on Linux
