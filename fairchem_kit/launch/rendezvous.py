"""How the ranks of a run find each other: a free port, published in the run directory.

fairchem uses a fixed port (13356 under SLURM; 29400 locally, torch's default), so two runs on one
node conflict. Here rank 0 opens torch's store on a free port, keeps it open, and writes host and
port to a file named after this start of the run.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from fairchem_kit.atomic_files import write_atomically
from fairchem_kit.launch.environment import OPEN_STORE
from fairchem_kit.launch.errors import LaunchError
from fairchem_kit.launch.places import Place

LIMIT_S = 600.0  # the nodes of a job may start minutes apart


class Rendezvous:
    """The open store that connects the ranks of a run."""

    def __init__(self, store: Any, file: Path | None) -> None:
        self.store = store
        self.file = file

    def forget_port(self) -> None:
        """Remove the published port, once every rank has it."""
        if self.file is not None:
            with contextlib.suppress(OSError):
                self.file.unlink()


def meet(place: Place, folder: Path, limit_s: float = LIMIT_S) -> Rendezvous:
    """Set MASTER_ADDR, MASTER_PORT, RANK, LOCAL_RANK and WORLD_SIZE for ``place``.

    Args:
        place: this rank.
        folder: a directory visible to all ranks of the run. limit_s: how long the others wait for
            rank 0, in seconds.

    Raises:
        LaunchError: if rank 0 has not published its port in time.
    """
    file = folder / f"{place.rendezvous}.port" if place.world_size > 1 else None
    store = None
    if place.rank == 0:
        host = "127.0.0.1" if place.nodes == 1 else socket.gethostname()
        store = _open_store(host, limit_s)
        port = store.port
        if file is not None:
            write_atomically(file, f"{host} {port}\n")
    else:
        assert file is not None
        host, port = _wait_for(file, limit_s)
    os.environ.update(
        MASTER_ADDR=host,
        MASTER_PORT=str(port),
        RANK=str(place.rank),
        LOCAL_RANK=str(place.local_rank),
        WORLD_SIZE=str(place.world_size),
        **OPEN_STORE,  # so that rank 0 does not open a second one
    )
    return Rendezvous(store, file if place.rank == 0 else None)


def _open_store(host: str, limit_s: float) -> Any:
    from torch.distributed import TCPStore

    return TCPStore(
        host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=limit_s)
    )


def _wait_for(file: Path, limit_s: float) -> tuple[str, int]:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            os.listdir(file.parent)  # NFS caches "no such file" until the folder is read
            host, port = file.read_text(encoding="utf-8").split()
            return host, int(port)
        time.sleep(0.2)
    raise LaunchError(
        f"Rank 0 has not published its port in {file} within {limit_s:.0f} s. It has not started "
        "(see its log), or the run directory is not on a file system that all nodes share."
    )
