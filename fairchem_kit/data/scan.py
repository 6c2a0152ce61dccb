"""The first pass over the sources: only scalars of every frame, to save memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import DataError, FrameError, not_read
from .frame_files import Source, iter_frames
from .frames import Frame, LabelOptions, other_constraints, read_frame
from .parallel import check_stop, run_tasks
from .record_check import geometry_problem

Composition = tuple[tuple[int, int], ...]  # (atomic number, count), sorted


@dataclass(frozen=True)
class GeometryLimits:
    """Frames that a model could not be trained on.

    Attributes:
        min_distance: A; closer atoms overlap. cutoff: A, of the model; an atom without a neighbour
            within it is isolated.
    """

    min_distance: float
    cutoff: float


@dataclass
class SourceScan:
    """Scalars of the usable frames of one source, in file order.

    Attributes:
        frame: (n,) frame numbers in the file. energy: (n,) eV. max_force: (n,) largest free-atom
            force norm, eV/A. natoms: (n,). system, composition: (n,) indices into the two lists.
        systems: labels of the systems. compositions: of the frames.
        bad: ``{"file", "frame", "reason"}`` of each frame that cannot be used.
        notes: constraints that a record cannot store, with the number of frames.
        foreign_tags: tags of another convention than OC20's, with the number of frames.
        pbc: the periodicity settings seen, as strings like ``TTF``.
    """

    source: Source
    frame: Any = field(default_factory=list)
    energy: Any = field(default_factory=list)
    max_force: Any = field(default_factory=list)
    natoms: Any = field(default_factory=list)
    system: Any = field(default_factory=list)
    composition: Any = field(default_factory=list)
    systems: list[str] = field(default_factory=list)
    compositions: list[Composition] = field(default_factory=list)
    bad: list[dict[str, Any]] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    foreign_tags: Counter[str] = field(default_factory=Counter)
    pbc: set[str] = field(default_factory=set)


def composition_of(numbers: np.ndarray) -> Composition:
    """How many atoms of each element: sorted (atomic number, count) pairs."""
    elements, counts = np.unique(numbers, return_counts=True)
    return tuple((int(z), int(n)) for z, n in zip(elements, counts, strict=True))


def formula_of(composition: Composition) -> str:
    """A formula such as ``Cu12-O1`` (elements by atomic number)."""
    from ase.data import chemical_symbols

    return "-".join(f"{chemical_symbols[z]}{count}" for z, count in composition)


def scan_source(task: tuple[Source, LabelOptions, GeometryLimits | None]) -> SourceScan:
    """Read a source once. Frames that cannot be used are listed in ``bad``; none is dropped here.

    A system is the set of frames with one value of ``system_key`` if given, otherwise the frames of
    one file with one chemical formula.
    """
    source, options, limits = task
    scan = SourceScan(source)
    systems: dict[tuple[str | None, Composition], int] = {}
    compositions: dict[Composition, int] = {}
    for index, atoms in iter_frames(source):
        check_stop()
        try:
            if isinstance(atoms, Exception):
                raise FrameError(not_read(atoms))
            data = read_frame(atoms, options)
            if limits is not None:
                _check_geometry(data, limits)
            label = _label(atoms, options.system_key)
        except FrameError as error:
            scan.bad.append({"file": source.path, "frame": index, "reason": str(error)})
            continue
        composition = composition_of(data.numbers)
        scan.frame.append(index)
        scan.energy.append(data.energy)
        scan.max_force.append(data.max_free_force())
        scan.natoms.append(len(data.numbers))
        scan.composition.append(compositions.setdefault(composition, len(compositions)))
        key = (label, () if label is not None else composition)
        scan.system.append(systems.setdefault(key, len(systems)))
        scan.pbc.add("".join("T" if p else "F" for p in data.pbc))
        scan.notes.update(other_constraints(atoms))
        scan.foreign_tags.update([data.foreign_tags] if data.foreign_tags else [])
    _finish(scan, list(systems), list(compositions))
    return scan


def _check_geometry(frame: Frame, limits: GeometryLimits) -> None:
    arrays = {"pos": frame.positions, "cell": frame.cell, "pbc": frame.pbc}
    problem = geometry_problem(arrays, limits.min_distance, limits.cutoff)
    if problem is not None:
        kind, message = problem
        raise FrameError(message + (", the model's cutoff" if kind == "isolated" else ""))


def _label(atoms: Any, key: str | None) -> str | None:
    if key is None:
        return None
    if key not in atoms.info:
        raise FrameError(f"no {key!r} (--system-key) in its info: {sorted(atoms.info)}")
    return str(atoms.info[key])


def _finish(
    scan: SourceScan,
    systems: list[tuple[str | None, Composition]],
    compositions: list[Composition],
) -> None:
    """Name the systems and turn the lists into arrays."""
    name = scan.source.name
    for label, composition in systems:
        alone = len(systems) == 1
        plain = name if alone else f"{name}:{formula_of(composition)}"
        scan.systems.append(label if label is not None else plain)
    scan.compositions = compositions
    for attribute, dtype in (
        ("frame", np.int64),
        ("energy", np.float64),
        ("max_force", np.float64),
        ("natoms", np.int32),
        ("system", np.int64),
        ("composition", np.int64),
    ):
        setattr(scan, attribute, np.asarray(getattr(scan, attribute), dtype=dtype))


@dataclass
class FrameTable:
    """Scalars of the frames of all sources, in order of (source, frame number).

    Attributes:
        source, frame, system, composition, natoms: (n,) integers; ``source``, ``system`` and
            ``composition`` index the lists. energy: (n,) eV. max_force: (n,) eV/A.
    """

    source: np.ndarray
    frame: np.ndarray
    system: np.ndarray
    composition: np.ndarray
    natoms: np.ndarray
    energy: np.ndarray
    max_force: np.ndarray
    sources: list[Source]
    systems: list[str]
    compositions: list[Composition]

    def __len__(self) -> int:
        return len(self.frame)

    def select(self, mask: np.ndarray) -> FrameTable:
        """The frames where ``mask`` (n,) is true; the lists do not change."""
        arrays = ("source", "frame", "system", "composition", "natoms", "energy", "max_force")
        values = {name: getattr(self, name)[mask] for name in arrays}
        return FrameTable(
            **values,
            sources=self.sources,
            systems=self.systems,
            compositions=self.compositions,
        )


def scan_sources(
    sources: Sequence[Source],
    options: LabelOptions,
    limits: GeometryLimits | None = None,
    workers: int = 1,
    progress: bool = True,
) -> list[SourceScan]:
    """Scan all sources, one task per file, in their order."""
    return run_tasks(
        scan_source,
        [(source, options, limits) for source in sources],
        workers=workers,
        describe="scanning",
        unit="file",
        progress=progress,
    )


def merge_scans(scans: Sequence[SourceScan]) -> FrameTable:
    """One table of all scans. Systems with the same label in several files are one system.

    Raises:
        DataError: there is no usable frame.
    """
    systems: dict[str, int] = {}
    compositions: dict[Composition, int] = {}
    columns: dict[str, list[np.ndarray]] = {"source": [], "system": [], "composition": []}
    for number, scan in enumerate(scans):
        to_system = [systems.setdefault(name, len(systems)) for name in scan.systems]
        to_composition = [compositions.setdefault(c, len(compositions)) for c in scan.compositions]
        columns["source"].append(np.full(len(scan.frame), number, dtype=np.int64))
        columns["system"].append(np.asarray(to_system, dtype=np.int64)[scan.system])
        columns["composition"].append(np.asarray(to_composition, dtype=np.int64)[scan.composition])
    for name in ("frame", "natoms", "energy", "max_force"):
        columns[name] = [getattr(scan, name) for scan in scans]
    merged = {name: np.concatenate(parts) for name, parts in columns.items()}
    if len(merged["frame"]) == 0:
        raise DataError("no usable frame in the sources; see the reasons above")
    return FrameTable(
        **merged,
        sources=[scan.source for scan in scans],
        systems=list(systems),
        compositions=list(compositions),
    )
