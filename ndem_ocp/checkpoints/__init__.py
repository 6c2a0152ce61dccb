"""Checkpoint files: written completely or not at all, and verified before they are used."""

from ndem_ocp.checkpoints.errors import CheckpointError, UnsafeError
from ndem_ocp.checkpoints.file import read_checkpoint, write_checkpoint
from ndem_ocp.checkpoints.store import CheckpointStore

__all__ = [
    "CheckpointError",
    "CheckpointStore",
    "UnsafeError",
    "read_checkpoint",
    "write_checkpoint",
]
