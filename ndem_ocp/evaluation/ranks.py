"""Several processes that share an evaluation: started by the package's launcher, or by srun.

They work alone, each on its batches, and meet once per split to hand rank 0 what they found. A
model that only predicts has no gradients to exchange, so there is no DDP and no NCCL.
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

from ndem_ocp.launch.errors import LaunchError
from ndem_ocp.launch.places import LOCAL, Place, alone, place_of
from ndem_ocp.launch.rank import with_device
from ndem_ocp.launch.rendezvous import meet
from ndem_ocp.launch.signals import stop_with_parent

_LIMIT = timedelta(hours=24)  # until the slowest rank has finished a split
INTERRUPTED = b"\nndem: stopping all ranks; nothing is kept.\n"


@dataclass(frozen=True)
class Rank:
    """One of the processes.

    Attributes:
        number, count: which of how many. device_number: which GPU. cpu: whether to use none.
    """

    number: int
    count: int
    device_number: int
    cpu: bool

    @property
    def first(self) -> bool:
        return self.number == 0


def my_place(ranks: int) -> Place | None:
    """Where this process stands: None if it is to start ``ranks`` others.

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
            f"--ranks {ranks} inside an srun step of {place.world_size} tasks: leave it out, srun "
            "has started the ranks."
        )
    if LOCAL in os.environ:
        stop_with_parent()
    return place


def rank_of(place: Place, cpu: bool) -> Rank:
    """This process with its device; without a GPU, or with ``cpu``, it computes on the CPU.

    Raises:
        LaunchError: if a machine with GPUs has fewer than ranks.
    """
    if cpu or not torch.cuda.is_available():
        return Rank(place.rank, place.world_size, 0, True)
    place = with_device(place)
    torch.cuda.set_device(place.local_rank)
    return Rank(place.rank, place.world_size, place.local_rank, False)


@contextlib.contextmanager
def together(place: Place, folder: Path) -> Iterator[None]:
    """Within, :func:`gather` works; ``folder`` is one that all ranks see."""
    if place.world_size == 1:
        yield
        return
    meeting = meet(place, folder)
    torch.distributed.init_process_group(
        "gloo", rank=place.rank, world_size=place.world_size, timeout=_LIMIT
    )
    meeting.forget_port()
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def gather(found: list[Any]) -> list[Any] | None:
    """The lists of all ranks as one, on rank 0; None on the others."""
    if not torch.distributed.is_initialized():
        return found
    first = torch.distributed.get_rank() == 0
    everything: list[Any] | None = [None] * torch.distributed.get_world_size() if first else None
    torch.distributed.gather_object(found, everything)
    return [item for part in everything for item in part] if everything is not None else None
