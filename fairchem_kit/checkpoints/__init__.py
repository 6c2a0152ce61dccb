"""Checkpoint files: written completely or not at all, and verified before they are used."""

from fairchem_kit.checkpoints.errors import CheckpointError, UnsafeError
from fairchem_kit.checkpoints.file import read_checkpoint, write_checkpoint
from fairchem_kit.checkpoints.store import CheckpointStore

__all__ = [
    "CheckpointError",
    "CheckpointStore",
    "UnsafeError",
    "read_checkpoint",
    "write_checkpoint",
]
