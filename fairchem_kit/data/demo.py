"""A small OC20-style data set computed on the spot with ASE's effective medium theory (EMT).

For trying and testing the software; EMT does not describe adsorption chemistry. Slabs of seven
metals with small adsorbates, the lower layers fixed; per system the frames of a short relaxation
followed by rattled frames. Splits: ``train``; ``val_id``, other systems made from the same
combinations; ``val_ood``, combinations of metal and adsorbate that are not in ``train``.
"""

from __future__ import annotations

import tempfile
import zlib
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .convert import convert
from .errors import DataError
from .frame_files import Source
from .lock import describe, one_writer
from .parallel import check_stop, run_tasks
from .plan import ConvertOptions
from .sources.ase import AseFiles
from .staging import check_target, terminate_as_interrupt

if TYPE_CHECKING:
    from ase import Atoms

#: frames with a larger force on a free atom are dropped, eV/A
MAX_FORCE = 10.0
VACUUM = 8.0  # A on each side of the slab
#: adsorbates: elements and positions in A above the site, the first atom binds
ADSORBATES: dict[str, tuple[tuple[str, tuple[float, float, float]], ...]] = {
    "H": (("H", (0.0, 0.0, 0.0)),),
    "C": (("C", (0.0, 0.0, 0.0)),),
    "N": (("N", (0.0, 0.0, 0.0)),),
    "O": (("O", (0.0, 0.0, 0.0)),),
    "CO": (("C", (0.0, 0.0, 0.0)), ("O", (0.0, 0.0, 1.15))),
    "NO": (("N", (0.0, 0.0, 0.0)), ("O", (0.3, 0.0, 1.15))),
    "OH": (("O", (0.0, 0.0, 0.0)), ("H", (0.6, 0.0, 0.78))),
    "CH": (("C", (0.0, 0.0, 0.0)), ("H", (0.0, 0.0, 1.10))),
    "NH": (("N", (0.0, 0.0, 0.0)), ("H", (0.0, 0.0, 1.03))),
    "CH2": (("C", (0.0, 0.0, 0.0)), ("H", (0.9, 0.0, 0.6)), ("H", (-0.9, 0.0, 0.6))),
}
SITES = {"fcc111": ("ontop", "bridge", "fcc", "hcp"), "fcc100": ("ontop", "bridge", "hollow")}
METALS = ("Al", "Cu", "Ag", "Au", "Ni", "Pd", "Pt")
#: combinations of metal and adsorbate that only val_ood has; each of their elements is in train
HELD_OUT = frozenset(
    [("Pt", "CO"), ("Pt", "OH"), ("Ni", "O"), ("Pd", "CH"), ("Ag", "NO"), ("Au", "H"), ("Cu", "N")]
)


@dataclass(frozen=True)
class Size:
    """Size of the data set: systems per split, frames per system, metals and adsorbates."""

    systems: dict[str, int]
    relaxation: int
    rattled: int
    metals: tuple[str, ...]
    adsorbates: tuple[str, ...]
    facets: tuple[str, ...]
    held_out: frozenset[tuple[str, str]]


SIZES = {
    "default": Size(
        {"train": 105, "val_id": 13, "val_ood": 13}, 8, 8,
        METALS, tuple(ADSORBATES), ("fcc111", "fcc100"), HELD_OUT,
    ),
    "small": Size(
        {"train": 4, "val_id": 1, "val_ood": 1}, 5, 5,
        ("Cu", "Pt"), ("O", "CO"), ("fcc100",), frozenset([("Pt", "CO")]),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class SystemTask:
    """One system to make: its composition, number of frames, and output path."""

    name: str
    split: str
    metal: str
    adsorbate: str
    facet: str
    seed: int
    relaxation: int
    rattled: int
    path: str


@one_writer
def make_demo(
    out: str | Path,
    size: str = "default",
    seed: int = 0,
    *,
    form: str = "lmdb",
    overwrite: bool = False,
    workers: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Make the data set in ``out/{train,val_id,val_ood}``; returns its entry in dataset.json.

    Energies (eV) are referenced per element by a fit on ``train``; no force on a free atom is
    above MAX_FORCE. The same seed gives the same records whatever ``workers`` is.

    Args:
        out: directory of the data set. size: ``small`` (60 frames) or ``default`` (about 2,100).
        seed: of all random choices. form: ``lmdb``, or ``aselmdb`` for fairchem 2.
        overwrite: replace a data set made by these tools.
        workers: processes. progress: show progress bars.

    Raises:
        DataError: unknown size, or ``out`` exists.
    """
    if size not in SIZES:
        raise DataError(f"unknown size {size!r}; known: {', '.join(SIZES)}")
    out = Path(out)
    check_target(out, None, overwrite)
    with terminate_as_interrupt(), tempfile.TemporaryDirectory(prefix="ndem-demo-") as folder:
        tasks = plan_systems(SIZES[size], seed, Path(folder))
        try:
            run_tasks(
                make_system,
                tasks,
                workers=workers,
                describe="computing",
                size=lambda task: task.relaxation + task.rattled,
                progress=progress,
            )
        except OSError as error:
            raise DataError(
                f"{folder}: {describe(error)}; set TMPDIR to a folder with enough space"
            ) from None
        sources = [Source(t.path, t.name, AseFiles(), f"demo:{t.name}") for t in tasks]
        options = ConvertOptions(
            # fairchem 2 subtracts references itself
            energy_reference="linear" if form == "lmdb" else "none",
            max_force=MAX_FORCE,
            seed=seed,
            overwrite=overwrite,
            format=form,
        )
        generator = {"name": "demo", "calculator": "EMT", "size": size, "seed": seed}
        return convert(
            sources,
            out,
            options,
            assign={task.name: task.split for task in tasks},
            provenance={"generator": generator},
            workers=workers,
            progress=progress,
        )


def plan_systems(size: Size, seed: int, folder: Path) -> list[SystemTask]:
    """The systems of all splits. ``train`` uses every combination before repeating one."""
    combinations = list(product(size.metals, size.adsorbates, size.facets))
    held_out = [c for c in combinations if (c[0], c[1]) in size.held_out]
    known = [c for c in combinations if (c[0], c[1]) not in size.held_out]
    tasks = []
    for split, count in size.systems.items():
        pool = held_out if split == "val_ood" else known
        rng = system_generator(seed, split)
        order = np.concatenate([rng.permutation(len(pool)) for _ in range(-(-count // len(pool)))])
        for number, choice in enumerate(order[:count]):
            metal, adsorbate, facet = pool[choice]
            name = f"{split}_{number:04d}_{metal}_{facet}_{adsorbate}"
            path = str(folder / f"{name}.traj")
            tasks.append(
                SystemTask(name, split, metal, adsorbate, facet, seed,
                           size.relaxation, size.rattled, path)
            )  # fmt: skip
    return tasks


def system_generator(seed: int, name: str) -> np.random.Generator:
    """A separate generator for each name, so that the order of the work does not matter."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def build_slab(task: SystemTask, rng: np.random.Generator) -> Atoms:
    """A 2x2 slab of 3 layers (12 atoms) with one adsorbate, strained by up to 3 % and periodic in
    all directions as in OC20. The lowest layer or the lowest two are fixed."""
    from ase import Atoms
    from ase.build import add_adsorbate, fcc100, fcc111
    from ase.constraints import FixAtoms
    from ase.data import atomic_numbers, reference_states

    lattice = reference_states[atomic_numbers[task.metal]]["a"] * rng.uniform(0.97, 1.03)
    build = {"fcc111": fcc111, "fcc100": fcc100}[task.facet]
    slab = build(task.metal, size=(2, 2, 3), a=lattice, vacuum=VACUUM)
    symbols, positions = zip(*ADSORBATES[task.adsorbate], strict=True)
    adsorbate = Atoms(symbols, positions=positions)
    adsorbate.rotate(rng.uniform(0.0, 360.0), "z")
    site = SITES[task.facet][rng.integers(len(SITES[task.facet]))]
    add_adsorbate(slab, adsorbate, height=rng.uniform(1.3, 2.0), position=site, mol_index=0)
    layer = slab.get_tags()  # 1 = uppermost layer, 0 = adsorbate
    fixed = layer > rng.integers(1, 3)
    slab.set_tags(np.where(fixed, 0, np.where(layer == 0, 2, 1)))
    slab.set_constraint(FixAtoms(mask=fixed))
    slab.pbc = True
    return slab


def make_system(task: SystemTask) -> None:
    """Relax and rattle one system and write its frames to ``task.path`` (an ASE trajectory)."""
    from ase.calculators.emt import EMT
    from ase.io.trajectory import Trajectory
    from ase.optimize import BFGS

    rng = system_generator(task.seed, task.name)
    slab = build_slab(task, rng)
    slab.calc = EMT()
    frames: list[Atoms] = []
    optimizer = BFGS(slab, logfile=None, maxstep=0.1)
    for _ in optimizer.irun(fmax=0.02, steps=4 * task.relaxation):
        check_stop()
        _collect(frames, slab)
        if len(frames) == task.relaxation:
            break
    relaxed = slab.get_positions()
    free = np.setdiff1d(np.arange(len(slab)), slab.constraints[0].index)
    missing = task.relaxation - len(frames)  # a relaxation that converged early
    wanted = len(frames) + task.rattled + missing
    for _ in range(10 * wanted):
        check_stop()
        if len(frames) == wanted:
            break
        noise = rng.uniform(0.03, 0.12) * rng.standard_normal((len(free), 3))
        positions = relaxed.copy()
        positions[free] += noise
        slab.set_positions(positions)
        _collect(frames, slab)
    else:
        raise DataError(f"{task.name}: rattled frames all have forces above {MAX_FORCE} eV/A")
    with Trajectory(task.path, "w") as trajectory:
        for frame in frames:
            trajectory.write(frame)


def _collect(frames: list[Atoms], atoms: Atoms) -> None:
    """Keep a frame with its energy and forces unless the force on a free atom exceeds MAX_FORCE."""
    from ase.calculators.singlepoint import SinglePointCalculator

    energy = atoms.get_potential_energy()
    forces = atoms.get_forces(apply_constraint=False)
    free = np.setdiff1d(np.arange(len(atoms)), atoms.constraints[0].index)
    if np.linalg.norm(forces[free], axis=1).max() > MAX_FORCE:
        return
    copy = atoms.copy()
    copy.calc = SinglePointCalculator(copy, energy=energy, forces=forces)
    frames.append(copy)
