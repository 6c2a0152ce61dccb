"""Checkpoint files: written whole or not at all, checked before they are believed."""

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
