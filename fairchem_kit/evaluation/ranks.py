"""Evaluation in several processes, started by the package's launcher or by srun.

Each rank works on its own batches and sends its results to rank 0 once per split. Prediction does
not exchange gradients, so neither DDP nor NCCL is used.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from fairchem_kit.launch.errors import LaunchError
from fairchem_kit.launch.places import LOCAL, Place, alone, place_of
from fairchem_kit.launch.rank import with_device
from fairchem_kit.launch.rendezvous import meet
from fairchem_kit.launch.signals import stop_with_parent
from fairchem_kit.words import counted

_LIMIT = timedelta(hours=24)  # waiting time for the slowest rank of a split
INTERRUPTED = b"\nndem: stopping all ranks; the same command continues.\n"


@dataclass(frozen=True)
class Rank:
    """One of the processes.

    Attributes:
        number, count: rank and number of ranks. device_number: of the GPU. cpu: use no GPU.
    """

    number: int
    count: int
    device_number: int
    cpu: bool

    @property
    def first(self) -> bool:
        return self.number == 0


def my_place(ranks: int) -> Place | None:
    """The rank of this process, or None if it must start ``ranks`` others.

    Raises:
        LaunchError: if ``ranks`` contradicts srun, or is below 1.
    """
    if ranks < 1:
        raise LaunchError("--ranks must be at least 1.")
    place = place_of()
    if place is None or (place.world_size == 1 and ranks > 1):
        return alone() if ranks == 1 else None
    if ranks not in (1, place.world_size):
        raise LaunchError(
            f"--ranks {ranks} inside an srun step of {counted(place.world_size, 'task')}: leave it "
            "out, srun has started the ranks."
        )
    if LOCAL in os.environ:
        stop_with_parent()
    return place


def rank_of(place: Place, cpu: bool) -> Rank:
    """This process with its device: the CPU without a GPU or with ``cpu``.

    Raises:
        LaunchError: if a machine has GPUs, but fewer than ranks.
    """
    if cpu or not torch.cuda.is_available():
        return Rank(place.rank, place.world_size, 0, True)
    place = with_device(place)
    torch.cuda.set_device(place.local_rank)
    return Rank(place.rank, place.world_size, place.local_rank, False)


@contextlib.contextmanager
def together(place: Place, folder: Path) -> Iterator[None]:
    """Context in which :func:`gather` works; all ranks must see ``folder``."""
    if place.world_size == 1:
        yield
        return
    rendezvous = meet(place, folder)
    torch.distributed.init_process_group(
        "gloo", rank=place.rank, world_size=place.world_size, timeout=_LIMIT
    )
    rendezvous.forget_port()
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def gather(found: list[Any]) -> list[Any] | None:
    """The lists of all ranks, concatenated, on rank 0; None on the others."""
    if not torch.distributed.is_initialized():
        return found
    first = torch.distributed.get_rank() == 0
    everything: list[Any] | None = [None] * torch.distributed.get_world_size() if first else None
    torch.distributed.gather_object(found, everything)
    return [item for part in everything for item in part] if everything is not None else None
