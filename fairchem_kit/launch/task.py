"""The function that submitit runs on every rank of a submitted task."""

from __future__ import annotations

from pathlib import Path

from submitit.helpers import Checkpointable

from fairchem_kit.launch.errors import LaunchError
from fairchem_kit.launch.places import alone, place_of
from fairchem_kit.launch.tasks import read_manifest
from fairchem_kit.launch.train import run_and_leave


class RunTask(Checkpointable):
    """One rank of one task of ndem submit."""

    def __call__(self, folder: str, index: int) -> None:
        manifest = read_manifest(Path(folder))
        if manifest is None:
            raise LaunchError(f"{folder} no longer has the tasks.json of ndem submit.")
        run_and_leave(manifest.command(index), place_of() or alone())
