"""QM9 -> LMDBs with twelve targets per molecule."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.data.errors import DataError
from fairchem_kit.data.fields import QM9_UNITS
from fairchem_kit.data.index_split import make_split
from fairchem_kit.data.molecule_source import MoleculeSource
from fairchem_kit.data.molecules import Molecules, check_molecules, file_record
from fairchem_kit.data.qm9_files import Qm9Arrays, read_qm9
from fairchem_kit.data.sources import register
from fairchem_kit.data.writer import DataSet

#: Hartree in eV as in PyTorch Geometric and, through it, in TorchMD-NET
HARTREE = 27.211386246
#: Energies of the free atoms, Hartree: QM9's own atomref.txt (B3LYP/6-31G(2df,p), Ramakrishnan et
#: al. 2014, doi:10.6084/m9.figshare.1057643); PyTorch Geometric and SchNetPack subtract the same.
#: Its columns for zpve are 0, and the one for Cv (2.981 cal/(mol K)) is not subtracted there.
ATOMREFS = {
    "U0": {1: -0.500273, 6: -37.846772, 7: -54.583861, 8: -75.064579, 9: -99.718730},
    "U": {1: -0.498857, 6: -37.845355, 7: -54.582445, 8: -75.063163, 9: -99.717314},
    "H": {1: -0.497912, 6: -37.844411, 7: -54.581501, 8: -75.062219, 9: -99.716370},
    "G": {1: -0.510927, 6: -37.861317, 7: -54.598897, 8: -75.079532, 9: -99.733544},
}
REFERENCES = ("atoms", "none")
UNITS = {**QM9_UNITS, "pos": "A", "cell": "A"}


@register
@dataclass(frozen=True)
class Qm9(MoleculeSource):
    """QM9, from any of its published forms (``qm9_files.read_qm9``).

    Attributes:
        reference: ``atoms`` subtracts ATOMREFS from U0, U, H and G; ``none`` keeps the totals.
    """

    description = (
        "Convert QM9 without the 3,054 uncharacterised molecules: 110,000 molecules "
        "for training, 10,000 for validation and 10,831 for test, unless other numbers or index "
        "files are given."
    )
    default_split = (110_000, 10_000, None)  # of the literature; 130,831 are characterised

    reference: str = "atoms"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add(
            "inputs",
            metavar="SOURCE",
            help="PyTorch Geometric's raw folder, an npz file with qm9pack's names, or `qm9pack` "
            "(pip install qm9pack)",
        )
        add(
            "--reference",
            choices=REFERENCES,
            default="atoms",
            help="subtracted from U0, U, H and G: QM9's energies of the free atoms, or nothing "
            "(default: atoms)",
        )

    def paths(self, inputs: str | Path) -> list[str | Path]:
        return [] if inputs == "qm9pack" else [inputs]

    def read(self, inputs: str | Path, progress: bool) -> DataSet:
        if self.reference not in REFERENCES:
            raise DataError(f"--reference {self.reference}: give one of {', '.join(REFERENCES)}")
        arrays = read_qm9(str(inputs), progress)
        count = len(arrays.index)
        splits, split_record = make_split(count, self.split, self.default_split, str(inputs))
        molecules = to_molecules(arrays, self.reference)
        used = np.concatenate(list(splits.values()))
        advice = "download the source again, or leave the molecule out with --train-indices ..."
        check_molecules(molecules, used, advice)
        entry = {
            "energy_reference": _reference(self.reference),
            "hartree_in_eV": HARTREE,
            "sources": [{**file_record(path), "kind": arrays.kind} for path in arrays.paths],
            "dropped": {"uncharacterised": arrays.removed},
            "split": split_record,
        }
        what = "molecular properties LMDB"
        return DataSet(molecules, splits, entry, described=what, units=UNITS)


def _reference(mode: str) -> dict[str, Any]:
    if mode == "none":
        return {"kind": "none"}
    return {
        "kind": "atoms",
        "targets": list(ATOMREFS),
        "atoms_Hartree": {name: {str(z): e for z, e in t.items()} for name, t in ATOMREFS.items()},
    }


def to_molecules(arrays: Qm9Arrays, reference: str) -> Molecules:
    """The molecules in the order of their numbers, with targets in the units of the records.

    Raises:
        DataError: a molecule without atoms, with an element that QM9 does not have, or twice.
    """
    path = str(arrays.paths[0])
    if (arrays.natoms < 1).any():
        record = int(np.argmax(arrays.natoms < 1))
        raise DataError(f"{path}: record {record} has no atoms; download the source again")
    values, counts = np.unique(arrays.index, return_counts=True)
    if (counts > 1).any():
        double = values[counts > 1][0]
        raise DataError(
            f"{path}: molecule {double} appears {counts.max()} times; download it again"
        )
    offsets = np.concatenate([[0], np.cumsum(arrays.natoms)]).astype(np.int64)
    known = np.isin(arrays.numbers, list(ATOMREFS["U0"]))
    if not known.all():
        atom = int(np.argmin(known))
        record = int(np.searchsorted(offsets, atom, side="right")) - 1
        raise DataError(
            f"{path}: `{arrays.keys['numbers']}`: record {record} has atomic number "
            f"{arrays.numbers[atom]}; QM9 has H, C, N, O and F only"
        )
    labels = {}
    for name, target in arrays.targets.items():
        if reference == "atoms" and name in ATOMREFS:
            table = np.zeros(10)
            table[list(ATOMREFS[name])] = list(ATOMREFS[name].values())
            target = target - np.add.reduceat(table[arrays.numbers], offsets[:-1])
        labels[name] = target * HARTREE if QM9_UNITS[name] == "eV" else target
    count = len(arrays.index)
    molecules = Molecules(
        numbers=arrays.numbers,
        positions=arrays.positions,
        offsets=offsets,
        sid=arrays.index,
        fid=np.zeros(count, dtype=np.int64),
        labels=labels,
        forces=None,
        file=np.zeros(count, dtype=np.int64),
        row=np.arange(count),
        files=(path,),
        keys=arrays.keys,
        double=reference == "none",
    )
    order = np.argsort(arrays.index, kind="stable")
    return molecules if np.array_equal(order, np.arange(count)) else molecules.part(order)
