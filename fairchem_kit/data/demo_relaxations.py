"""Relaxations of the demo's systems with EMT, from start to end, as ASE trajectories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .demo import SIZES, build_slab, plan_systems, system_generator
from .errors import DataError
from .frame_files import Source
from .lock import one_writer
from .sources.ase import AseFiles
from .staging import staging

if TYPE_CHECKING:
    from ase import Atoms

FMAX = 0.02  # eV/A
_STEPS = 300


@one_writer
def make_relaxations(out: str | Path, systems: int = 8, size: str = "default", seed: int = 1000):
    """Relax new systems from the combinations of metal and adsorbate in the demo's ``train``.

    Args:
        out: directory for ``relaxation_0000_METAL_FACET_ADSORBATE.traj``, ...
        systems: number of systems. size: of the demo: ``small`` or ``default``.
        seed: must differ from the demo data's, or the systems would be the same.

    Returns:
        The trajectories as sources of ``convert_relaxations``.

    Raises:
        DataError: unknown size, or ``out`` exists and is not empty.
    """
    if size not in SIZES:
        raise DataError(f"unknown size {size!r}; known: {', '.join(SIZES)}")
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out} is not empty; give another directory")
    tasks = [t for t in plan_systems(SIZES[size], seed, out) if t.split == "train"]
    sources = []
    with staging(out, None) as folder:
        for number in range(systems):
            task = tasks[number % len(tasks)]
            name = f"relaxation_{number:04d}_{task.metal}_{task.facet}_{task.adsorbate}"
            slab = build_slab(task, system_generator(seed, f"relaxation {number}"))
            _relax(slab, folder / f"{name}.traj")
            sources.append(Source(str(out / f"{name}.traj"), name, AseFiles(), f"demo:{name}"))
    return sources


def _relax(slab: Atoms, path: Path) -> None:
    """Relax a slab and write every step."""
    from ase.calculators.emt import EMT
    from ase.io.trajectory import Trajectory
    from ase.optimize import BFGS

    slab.calc = EMT()
    with Trajectory(str(path), "w", slab) as trajectory:
        optimizer = BFGS(slab, logfile=None, maxstep=0.1)
        optimizer.attach(trajectory.write)
        optimizer.run(fmax=FMAX, steps=_STEPS)
    if not np.isfinite(slab.get_potential_energy()):
        raise DataError(f"{path.name}: EMT gave no finite energy")
