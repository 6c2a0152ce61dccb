"""What a step costs: seconds, atoms per second, memory.

Logged in training at every step that the console shows (``--print-every``), over the steps since
the last one:

``s_per_step``          from asking for the batch to the end of the optimizer's step; validation,
                        checkpoints and logs are not in it
``atoms_per_s``         clean atoms of all ranks (a second view is not counted)
``structures_per_s``    of all ranks
``data_share_of_time``  waiting for the batch, rank 0
``memory_GB``           the largest peak of all ranks since the start: of torch's allocations on a
                        GPU, of the process on a CPU
"""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from fairchem.core.common import distutils
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_kit.training.component import Call, Component


class Costs(Component):
    """Logs what a step costs.

    Attributes:
        clock: of the steps since the last line.
        constants: further quantities for every line, by name.
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
        """Whether this step has a line."""
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
    """Adds up the time of steps between two printed ones."""

    def __init__(self) -> None:
        self.steps, self.seconds, self.waited = 0, 0.0, 0.0
        self._structures = 0
        self._atoms: Tensor | int = 0
        self._began: float | None = None

    def begin(self) -> None:
        """The next batch is asked for."""
        self._began = time.perf_counter()
        self._waiting = True

    def got(self, batch: Batch) -> None:
        """The batch is here."""
        if self._began is not None and self._waiting:
            self.waited += time.perf_counter() - self._began
            self._waiting = False
        self._structures += batch.natoms.numel()
        self._atoms = self._atoms + batch.natoms.sum()  # on its device: read once per line

    def end(self) -> None:
        """The optimizer's step is done."""
        if self._began is not None:
            self.seconds += time.perf_counter() - self._began
            self.steps += 1
            self._began = None

    def counts(self) -> tuple[int, int]:
        """Atoms and structures so far."""
        return int(self._atoms), self._structures

    def stopped(self) -> Clock:
        return self

    def __enter__(self) -> None:
        self._paused = time.perf_counter()

    def __exit__(self, *error: Any) -> None:
        if self._began is not None:
            self._began += time.perf_counter() - self._paused


def peak_memory(device: torch.device) -> int:
    """Bytes: the peak of torch's allocations on a GPU, of this process's resident memory else."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux
