"""Removing the folders of a start that failed before training."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from fairchem_kit.history.logger import FILE_NAME
from fairchem_kit.launch.record import FOLDER


class Leftovers:
    """The files of the run ``run_id`` in a run directory before a start.

    fairchem creates the folders of a run before it reads its configuration.
    """

    def __init__(self, run_dir: Path, run_id: str) -> None:
        self.run_dir, self.run_id = run_dir, run_id
        self._there = {path for path in self._parents() if path.exists()}
        self._runs = {path for path in self._folders() if path.exists()}
        self._status = set(self._status_files())

    def remove(self, status: bool) -> None:
        """Remove what this start has created, unless it has trained or the run existed before.

        Args:
            status: also remove the record of the run, which is needed to find out about a failed
                job.
        """
        new = [path for path in self._folders() if path not in self._runs]
        if any(_has_trained(path) for path in new):
            return
        for path in new:
            shutil.rmtree(path, ignore_errors=True)
        if status and not self._status:
            for path in self._status_files():
                with contextlib.suppress(OSError):
                    path.unlink()
        for path in sorted(self._parents(), key=lambda path: -len(path.parts)):
            if path not in self._there:
                with contextlib.suppress(OSError):  # not empty: used by something else
                    path.rmdir()

    def _folders(self) -> list[Path]:
        """Folders of this run only."""
        logs = [folder / self.run_id for folder in self.run_dir.glob("logs/*") if folder.is_dir()]
        return [self.run_dir / "checkpoints" / self.run_id, *logs,
                self.run_dir / "results" / self.run_id]  # fmt: skip

    def _status_files(self) -> list[Path]:
        names = (f"{self.run_id}.json", f"{self.run_id}.attempt", f"{self.run_id}.error-*.json")
        return [path for name in names for path in (self.run_dir / FOLDER).glob(name)]

    def _parents(self) -> list[Path]:
        """Folders shared with other runs."""
        inner = [self.run_dir / name for name in ("checkpoints", "results", "logs", FOLDER)]
        return [self.run_dir, *inner, *self.run_dir.glob("logs/*")]


def _has_trained(folder: Path) -> bool:
    """Whether a folder of a run has a checkpoint or a logged step."""
    history = folder / FILE_NAME
    checkpoints = folder.glob("*checkpoint*.pt")
    return next(checkpoints, None) is not None or (history.exists() and history.stat().st_size > 0)
