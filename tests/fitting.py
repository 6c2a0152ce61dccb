"""Files of frames for ``ndem fit``, made with EMT in a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, fcc111
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write


def labelled(atoms: Atoms) -> Atoms:
    """A copy with EMT's energy and forces, as a file keeps them."""
    copy = atoms.copy()
    copy.calc = EMT()
    copy.calc = SinglePointCalculator(
        copy, energy=copy.get_potential_energy(), forces=copy.get_forces()
    )
    return copy


def molecule(symbols: str = "OCO") -> Atoms:
    return Atoms(symbols, [[1.2 * i, 0.1 * i, 0.0] for i in range(len(Atoms(symbols)))])


def surface(adsorbate: str = "O", metal: str = "Cu") -> Atoms:
    slab = fcc111(metal, size=(1, 1, 2), a=3.7, vacuum=5.0, periodic=True)
    add_adsorbate(slab, adsorbate, height=1.6)
    slab.set_tags(0)
    slab.info.clear()
    return slab


def rattled(atoms: Atoms, count: int, seed: int = 0, step: float = 0.05) -> list[Atoms]:
    """``count`` frames around ``atoms``, no two alike."""
    generator = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        frame = atoms.copy()
        frame.positions += generator.normal(0.0, step, frame.positions.shape)
        frames.append(labelled(frame))
    return frames


def write_frames(path: Path, frames: list[Atoms]) -> Path:
    write(path, frames, format="extxyz")
    return path
