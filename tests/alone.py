"""What only one test of this machine can have at a time, in whichever process the test runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

TORCHS_PORT = "torchs-port"  # 29400, where the stock command's ranks meet
CLUSTER = "cluster"  # SLURM, and the installation of its packages


@contextlib.contextmanager
def alone(what: str) -> Iterator[None]:
    """Wait until no other test has ``what``, and keep it."""
    path = Path(tempfile.gettempdir()) / f"ndem-test-{os.getuid()}-{what}.lock"
    with path.open("w") as file:  # closed with the process, however it ends
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
