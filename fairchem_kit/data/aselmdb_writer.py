"""Writing data sets for fairchem 2: ASE databases in LMDB files (``*.aselmdb``).

What is written is what the package ase-db-backends reads. Energies are total (or referenced, as
asked for), in eV; positions as in the source, near the origin.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError

_COMMIT_EVERY = 200


def row_of(fields: dict[str, Any], positions: np.ndarray, cell: np.ndarray) -> dict[str, Any]:
    """The row of an ASE database for the fields of an S2EF record.

    Args:
        fields: of :func:`fairchem_kit.data.shards.to_data`. positions, cell: float64, A.
    """
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.constraints import FixAtoms
    from ase.db.row import AtomsRow

    atoms = Atoms(
        fields["atomic_numbers"].numpy(),
        positions=positions,
        cell=cell,
        pbc=fields["pbc"].numpy()[0],
        tags=fields["tags"].numpy(),
        constraint=FixAtoms(mask=fields["fixed"].numpy() != 0),
    )
    forces = fields["force"].numpy().astype(np.float64)
    atoms.calc = SinglePointCalculator(atoms, energy=fields["y"], forces=forces)
    row = AtomsRow(atoms)
    skipped = {"id", *row._keys}
    content = {k: row[k] for k in vars(row) if not k.startswith("_") and k not in skipped}
    content["cell"] = np.asarray(content["cell"])
    content["constraints"] = [constraint.todict() for constraint in atoms.constraints]
    # Equal structures are equal bytes, whenever and by whom they are written.
    fixed = {"ctime": 0.0, "mtime": 0.0, "user": "", "unique_id": "0" * 32}
    data = {"sid": fields["sid"], "fid": fields["fid"]}
    return {**content, **fixed, "key_value_pairs": {}, "data": data}


def write_rows(path: str | Path, rows: Iterable[dict[str, Any]], atoms: int, count: int) -> int:
    """Write one ``*.aselmdb`` file; returns the number of rows.

    Args:
        path: the file. rows: of :func:`row_of`. atoms, count: in all, for the size of the map.

    Raises:
        DataError: the disk does not take it.
    """
    import lmdb

    written = 0
    try:
        size = 64 * 1024**2 + 4 * (count * 8192 + atoms * 512)
        with lmdb.open(str(path), map_size=size, subdir=False, lock=False) as env:
            transaction = env.begin(write=True)
            for written, row in enumerate(rows, start=1):
                transaction.put(b"%d" % written, _encoded(row))
                if written % _COMMIT_EVERY == 0:
                    transaction.commit()
                    transaction = env.begin(write=True)
            transaction.put(b"nextid", _encoded(written + 1))
            transaction.commit()
            env.sync(True)
    except lmdb.Error as error:
        raise DataError(f"{path}: cannot be written ({error}); nothing was kept") from None
    return written


def _encoded(content: Any) -> bytes:
    from ase.io.jsonio import encode

    return zlib.compress(encode(content).encode("utf-8"))
