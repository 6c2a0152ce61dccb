"""Writing files for fairchem 2: ASE databases in LMDB files (``*.aselmdb``).

What is written is what the package ase-db-backends reads. Energies are total (or referenced, as
asked for), in eV; positions as in the source, near the origin.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .shards import write_lmdb
from .stream import Record


def row_of(record: Record) -> dict[str, Any]:
    """The row of an ASE database for a record with ``y`` and ``force``."""
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.constraints import FixAtoms
    from ase.db.row import AtomsRow

    atoms = Atoms(
        record.numbers,
        positions=record.near,
        cell=record.cell,
        pbc=record.pbc,
        tags=record.tags,
        constraint=FixAtoms(mask=record.fixed != 0),
    )
    forces = record.vectors["force"].astype(np.float32).astype(np.float64)  # as in other records
    energy = float(record.labels["y"])
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    row = AtomsRow(atoms)
    skipped = {"id", *row._keys}
    content = {k: row[k] for k in vars(row) if not k.startswith("_") and k not in skipped}
    content["cell"] = np.asarray(content["cell"])
    content["constraints"] = [constraint.todict() for constraint in atoms.constraints]
    # Equal structures are equal bytes, whenever and by whom they are written.
    fixed = {"ctime": 0.0, "mtime": 0.0, "user": "", "unique_id": "0" * 32}
    data = {"sid": int(record.sid), "fid": int(record.fid)}
    return {**content, **fixed, "key_value_pairs": {}, "data": data}


def write_rows(path: str | Path, rows: Iterable[dict[str, Any]], atoms: int, count: int) -> int:
    """Write one ``*.aselmdb`` file; returns the number of rows.

    Args:
        path: the file. rows: of :func:`row_of`. atoms, count: in all, for the size of the map.

    Raises:
        DataError: a disk error.
    """

    def items() -> Iterator[tuple[bytes, bytes]]:
        number = 0
        for number, row in enumerate(rows, start=1):
            yield b"%d" % number, _encoded(row)
        yield b"nextid", _encoded(number + 1)

    return write_lmdb(path, items(), count * 8192 + atoms * 512) - 1


def _encoded(content: Any) -> bytes:
    from ase.io.jsonio import encode

    return zlib.compress(encode(content).encode("utf-8"))
