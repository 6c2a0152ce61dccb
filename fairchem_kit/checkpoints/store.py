"""The checkpoints of one run: saving, keeping the newest, and finding the newest good one.

checkpoints/RUN/checkpoint-00000120.pt   the last K saved steps
checkpoints/RUN/checkpoint.pt            the newest of them (a link), where fairchem looks
checkpoints/RUN/best_checkpoint.pt       best validation metric so far
checkpoints/RUN/checkpoints.json         the list of them, for people and for `ndem status`
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fairchem_kit.checkpoints.errors import CheckpointError, UnsafeError
from fairchem_kit.checkpoints.file import (
    read_checkpoint,
    verify,
    write_checkpoint,
)
from fairchem_kit.files import clean_up, replacing

NEWEST, BEST, INDEX = "checkpoint.pt", "best_checkpoint.pt", "checkpoints.json"
_NAME = re.compile(r"^checkpoint-(\d+)\.pt$")


class CheckpointStore:
    """Writes and finds the checkpoints of one run; only one process of a run may write.

    Args:
        directory: ``checkpoints/RUN``.
        keep: how many of the newest checkpoints to keep.
    """

    def __init__(self, directory: str | Path, keep: int = 3) -> None:
        self.directory = Path(directory)
        self.keep = keep

    def save(self, state: Mapping[str, Any]) -> Path:
        """Write the state after ``state["step"]`` as the newest checkpoint.

        Raises:
            CheckpointError: if it could not be written; the older ones are unchanged.
        """
        clean_up(self.directory)
        path = write_checkpoint(state, self.directory / f"checkpoint-{state['step']:08d}.pt")
        with replacing(self.directory / NEWEST) as temporary:
            _same_file(path, temporary)
        self._write_index(path, state)
        self._forget_old(path)
        return path

    def save_best(self, state: Mapping[str, Any]) -> Path:
        """Write the best checkpoint."""
        return write_checkpoint(state, self.directory / BEST)

    def newest(self) -> Path | None:
        """The newest checkpoint with correct checksums; each bad one is logged."""
        for path in self._candidates():
            try:
                verify(path)
            except CheckpointError as error:
                logging.warning(f"{error} It is left where it is; trying an older checkpoint.")
            else:
                return path
        return None

    def read_newest(
        self, map_location: torch.device | str = "cpu", unsafe: bool = False
    ) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that can be read, None if there is none.

        Raises:
            UnsafeError: if it holds more than plain values, and ``unsafe`` was not given.
        """
        for path in self._candidates():
            try:
                return path, read_checkpoint(path, map_location, unsafe)
            except UnsafeError:
                raise  # using an older one instead would lose steps
            except CheckpointError as error:
                logging.warning(f"{error} It is left where it is; trying an older checkpoint.")
        return None

    @staticmethod
    def step_of(path: Path, unsafe: bool = False) -> int:
        """Finished steps of a checkpoint, from its name or else from its content."""
        named = _step_of(path)
        return named if named >= 0 else int(read_checkpoint(path, unsafe=unsafe).get("step", 0))

    def owns(self, path: str | Path) -> bool:
        """Whether ``path`` is in this run's directory."""
        # not resolve(), which raises another error for a link to itself
        return os.path.dirname(os.path.realpath(path)) == os.path.realpath(self.directory)

    def _candidates(self) -> Iterator[Path]:
        """Checkpoints to resume from, newest first; ``checkpoint.pt`` last, if it is another file.

        A run started by fairchem's own trainer has only that one.
        """
        steps = self._steps()
        yield from steps
        newest = self.directory / NEWEST
        if newest.exists() and not any(os.path.samefile(newest, path) for path in steps):
            yield newest

    def _steps(self) -> list[Path]:
        if not self.directory.is_dir():
            return []
        found = [path for path in self.directory.iterdir() if _NAME.match(path.name)]
        return sorted(found, key=_step_of, reverse=True)

    def _forget_old(self, newest: Path) -> None:
        """Keep the newest ``keep`` checkpoints up to ``newest``, which has just been saved.

        A checkpoint of a later step is damaged, or belongs to steps that the run has discarded by
        resuming before them. It is renamed, so that it is not taken for the newest one again.
        """
        earlier = []
        for path in self._steps():
            if _step_of(path) > _step_of(newest):
                aside = path.with_name(f"left-aside-{path.name}")
                logging.warning(
                    f"{path.name} is from a later step than the one just saved: renamed to {aside}."
                )
                path.replace(aside)
            elif path != newest:
                earlier.append(path)
        for path in earlier[self.keep - 1 :]:
            with contextlib.suppress(OSError):
                path.unlink()

    def _write_index(self, path: Path, state: Mapping[str, Any]) -> None:
        best = state.get("best_val_metric")
        newest = {
            "file": path.name,
            "bytes": path.stat().st_size,
            "step": state["step"],
            "epoch": state.get("epoch"),
            "primary_metric": state.get("primary_metric"),
            "best_val_metric": None if best is None else float(best),
        }
        with replacing(self.directory / INDEX) as temporary:
            temporary.write_text(json.dumps({"newest": newest}, indent=1) + "\n")


def _step_of(path: Path) -> int:
    match = _NAME.match(path.name)
    return int(match.group(1)) if match else -1


def _same_file(path: Path, name: Path) -> None:
    """Make ``name`` a hard link to ``path``, or a symbolic link or a copy if links are not
    supported."""
    with contextlib.suppress(OSError):
        os.link(path, name)
        return
    with contextlib.suppress(OSError):
        os.symlink(path.name, name)
        return
    shutil.copyfile(path, name)
