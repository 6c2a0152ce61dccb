"""Reading QM9 from PyTorch Geometric's raw folder, the package qm9pack, or an npz of its arrays."""

from __future__ import annotations

import csv
import importlib.util
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.npz import read_npz
from fairchem_kit.progress import bar as progress_bar
from fairchem_kit.words import counted

from .errors import DataError

#: our target -> (column of gdb9.sdf.csv, key of qm9pack); units as in QM9: D, a0^3, Hartree, a0^2,
#: cal/(mol K)
COLUMNS = {
    "mu": ("mu", "Dipole_debye"),
    "alpha": ("alpha", "Polarizability_bohr3"),
    "homo": ("homo", "HOMO_au"),
    "lumo": ("lumo", "LUMO_au"),
    "gap": ("gap", "HOMO_LUMO_gap_au"),
    "r2": ("r2", "R2_bohr2"),
    "zpve": ("zpve", "ZPVE_au"),
    "U0": ("u0", "InternalEnergy_0K_au"),
    "U": ("u298", "InternalEnergy_298K_au"),
    "H": ("h298", "Enthalphy_298K_au"),
    "G": ("g298", "GibbsFreeEnergy_298K_au"),
    "Cv": ("cv", "Heatcapacity_Cv_cal_mol_K"),
}
RAW_FILES = ("gdb9.sdf", "gdb9.sdf.csv", "uncharacterized.txt")
#: uncharacterized.txt: lines before the list and after it
_HEADER, _FOOTER = 9, 1
_ELEMENTS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}


@dataclass
class Qm9Arrays:
    """QM9 as in the source: M molecules with A atoms in total.

    Attributes:
        kind: ``raw``, ``qm9pack`` or ``npz``. paths: the files that were read.
        index: (M,) number in GDB-9, from 1. natoms: (M,). numbers: (A,). positions: (A, 3) A.
        targets: (M,) float64 by our name, in QM9's units.
        keys: names of positions, atomic numbers and targets in the source.
        removed: uncharacterised molecules left out here.
    """

    kind: str
    paths: list[Path]
    index: np.ndarray
    natoms: np.ndarray
    numbers: np.ndarray
    positions: np.ndarray
    targets: dict[str, np.ndarray]
    keys: dict[str, str]
    removed: int = 0


def read_qm9(source: str, progress: bool = True) -> Qm9Arrays:
    """Read QM9.

    Args:
        source: ``qm9pack``, a folder with RAW_FILES (or with a folder ``raw`` that has them), or an
            npz file with qm9pack's names. progress: show a bar.

    Raises:
        DataError: not one of these, or damaged files.
    """
    path = Path(source)
    if path.is_dir():
        return _read_raw(path / "raw" if (path / "raw").is_dir() else path, progress)
    if path.is_file():
        return _read_npz(path)
    if source == "qm9pack":
        return _read_pack(progress)
    raise DataError(
        f"{source}: no such file or folder; give PyTorch Geometric's raw folder "
        f"({', '.join(RAW_FILES)}), an npz file of QM9, or `qm9pack` for the package"
    )


def _read_npz(path: Path) -> Qm9Arrays:
    arrays = read_npz(path, DataError)
    wanted = {"R", "Z", "N", "Index"} | {pack for _, pack in COLUMNS.values()}
    if not wanted <= set(arrays):
        raise DataError(
            f"{path}: unknown layout; it lacks {sorted(wanted - set(arrays))} and has "
            f"{sorted(arrays)}. The units are taken from the names, so other names are not guessed"
        )
    natoms = arrays["N"]
    if natoms.ndim != 1 or natoms.dtype.kind not in "iuf" or not (natoms >= 1).all():
        raise DataError(
            f"{path}: `N` must be a list of the numbers of atoms, 1 or more each, and is "
            f"{natoms.dtype} of shape {natoms.shape}; make the file again"
        )
    count, atoms = len(natoms), int(natoms.sum())
    shapes = dict.fromkeys(wanted, (count,)) | {"R": (atoms, 3), "Z": (atoms,)}
    for key in sorted(wanted):
        if arrays[key].shape != shapes[key] or arrays[key].dtype.kind not in "iuf":
            raise DataError(
                f"{path}: `{key}` is {arrays[key].dtype} of shape {arrays[key].shape}, expected "
                f"numbers of shape {shapes[key]} for {counted(count, 'molecule')} (`N`) of "
                f"{counted(atoms, 'atom')}"
            )
    for key in ("Z", "N", "Index"):
        broken = np.flatnonzero(
            (arrays[key] != np.round(arrays[key])) | (np.abs(arrays[key]) > _LARGEST_WHOLE)
        )
        if len(broken):
            raise DataError(
                f"{path}: `{key}`: entry {broken[0]} is {arrays[key][broken[0]]:g}, expected whole "
                "numbers; make the file again"
            )
    targets = {name: arrays[key].astype(np.float64) for name, (_, key) in COLUMNS.items()}
    keys = {"positions": "R", "numbers": "Z"} | {name: key for name, (_, key) in COLUMNS.items()}
    return Qm9Arrays(
        "npz", [path], arrays["Index"].astype(np.int64), arrays["N"].astype(np.int64),
        arrays["Z"], arrays["R"], targets, keys,
    )  # fmt: skip


_LARGEST_WHOLE = 2**53  # from here on float64 cannot tell whole numbers apart


class _Builder:
    """Collects molecules one by one, in little memory."""

    def __init__(self) -> None:
        self.index, self.natoms, self.numbers = array("q"), array("q"), array("B")
        self.positions, self.targets = array("d"), array("d")

    def add(
        self, index: int, symbols: list[str], positions: list[float], targets: list[str]
    ) -> None:
        """Raise ValueError or KeyError if it is not a molecule of QM9."""
        if len(positions) != 3 * len(symbols):
            raise ValueError(f"{len(positions)} coordinates of {counted(len(symbols), 'atom')}")
        self.numbers.extend([_ELEMENTS[symbol] for symbol in symbols])
        self.positions.extend(positions)
        self.targets.extend([float(text) for text in targets])
        self.natoms.append(len(symbols))
        self.index.append(index)

    def arrays(self, kind: str, paths: list[Path], column: int, removed: int) -> Qm9Arrays:
        keys = {name: columns[column] for name, columns in COLUMNS.items()}
        targets = np.array(self.targets).reshape(-1, len(COLUMNS)).T
        return Qm9Arrays(
            kind, paths, np.array(self.index), np.array(self.natoms), np.array(self.numbers),
            np.array(self.positions).reshape(-1, 3), dict(zip(COLUMNS, targets)), keys, removed,
        )  # fmt: skip


def _read_raw(folder: Path, progress: bool) -> Qm9Arrays:
    paths = [folder / name for name in RAW_FILES]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{folder}: {', '.join(missing)} missing; PyTorch Geometric's QM9 puts "
            f"{', '.join(RAW_FILES)} there if rdkit is installed"
        )
    sdf, table, skipped = paths
    skip = _uncharacterised(skipped)
    builder, removed = _Builder(), 0
    rows = _csv_rows(table, [column for column, _ in COLUMNS.values()])
    with open(sdf, encoding="ascii", errors="replace") as stream:
        molecules = progress_bar(
            _sdf_molecules(stream, sdf), desc="reading", unit="molecule", show=progress
        )
        for index, (symbols, positions) in enumerate(molecules, 1):
            line, targets = next(rows, (0, None))
            if targets is None:
                raise DataError(f"{table}: no row for molecule {index} of {sdf.name}")
            if index in skip:
                removed += 1
                continue
            try:
                builder.add(index, symbols, positions, targets)
            except (ValueError, KeyError) as error:
                raise DataError(
                    f"{sdf}: molecule {index}, {table.name}: line {line}: not one of QM9 "
                    f"({error}); unpack the files again"
                ) from None
    if next(rows, None) is not None:
        raise DataError(f"{sdf}: ends early, {table.name} has more molecules; unpack it again")
    if not builder.index:
        raise DataError(f"{sdf}: no molecules")
    return builder.arrays("raw", paths, 0, removed)


def _uncharacterised(path: Path) -> set[int]:
    """Numbers of the molecules that failed QM9's consistency check."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    try:
        found = {int(line.split()[0]) for line in lines[_HEADER : len(lines) - _FOOTER]}
        count = lines[-1].split()[0]  # "3054 compounds"; a row if the file was cut off
        if not found or (count.isdigit() and int(count) != len(found)):
            raise ValueError
        return found
    except (ValueError, IndexError):
        raise DataError(
            f"{path}: not the list of uncharacterised molecules ({_HEADER} lines of text, then a "
            "number at the start of each line, a last line of text); download it again"
        ) from None


def _sdf_molecules(stream: Iterable[str], path: Path) -> Iterator[tuple[list[str], list[float]]]:
    """Elements and coordinates of the molecules of an SDF file (V2000)."""
    number, lines = 0, []
    for line in stream:
        if not line.startswith("$$$$"):
            lines.append(line)
            continue
        number += 1
        try:
            atoms = [text.split() for text in lines[4 : 4 + int(lines[3][:3])]]
            yield [a[3] for a in atoms], [float(x) for a in atoms for x in a[:3]]
        except (ValueError, IndexError):
            raise DataError(f"{path}: molecule {number} is damaged; unpack it again") from None
        lines = []


def _csv_rows(path: Path, columns: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Line number and the wanted columns of each row of a csv file."""
    with open(path, encoding="utf-8", errors="replace", newline="") as stream:
        reader = csv.reader(stream)
        head = _next_row(reader, path) or []
        if not set(columns) <= set(head):
            raise DataError(f"{path}: needs the columns {columns}, it has {_short(head)}")
        places = [head.index(column) for column in columns]
        while (row := _next_row(reader, path)) is not None:
            if len(row) != len(head):
                raise DataError(f"{path}: line {reader.line_num} has {counted(len(row), 'column')}")
            yield reader.line_num, [row[place] for place in places]


def _next_row(reader: Any, path: Path) -> list[str] | None:
    """The next row of a csv file; None at its end."""
    try:
        return next(reader, None)
    except csv.Error as error:
        raise DataError(
            f"{path}: line {reader.line_num} is damaged ({error}); unpack or download it again"
        ) from None


def _short(head: list[str]) -> str:
    text = repr(head)
    return text if len(text) <= 300 else f"{text[:300]}..."


def _read_pack(progress: bool) -> Qm9Arrays:
    """The tables of the package qm9pack, found without importing it, which would need more
    packages."""
    spec = importlib.util.find_spec("qm9pack")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("qm9pack is not installed; `pip install qm9pack` (100 MB), or give a path")
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    paths = sorted(folder.glob("qm9_part*.csv"))
    if not paths:
        raise DataError(f"{folder}: no qm9_part*.csv; install qm9pack 1.0.3 again")
    columns = ["Index", "Elements", "XYZ_Ang", *(pack for _, pack in COLUMNS.values())]
    builder, bar = _Builder(), progress_bar(desc="reading", unit="molecule", show=progress)
    for path in paths:
        for line, (index, elements, positions, *targets) in _csv_rows(path, columns):
            try:
                symbols = elements.strip("[]").replace("'", "").split(",")
                numbers = positions.replace("[", "").replace("]", "").split(",")  # such as "0."
                builder.add(int(index), symbols, [float(n) for n in numbers], targets)
            except (ValueError, KeyError) as error:
                raise DataError(f"{path}: line {line}: not a molecule of QM9 ({error})") from None
            bar.update()
    bar.close()
    return builder.arrays("qm9pack", paths, 1, 0)
