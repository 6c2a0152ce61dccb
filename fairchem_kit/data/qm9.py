"""QM9 -> LMDBs with twelve targets per molecule (``ndem data qm9``)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .fields import QM9_UNITS
from .index_split import SplitOptions, make_split
from .lock import one_writer
from .molecules import Molecules, check_molecules, file_record
from .qm9_files import Qm9Arrays, read_qm9
from .split import TRAIN
from .staging import check_target
from .writer import DataSet, write

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
#: the split of the literature; the rest of the 130,831 characterised molecules are for test
DEFAULT_SPLIT = (110_000, 10_000, None)
UNITS = {**QM9_UNITS, "pos": "A", "cell": "A"}


@dataclass(frozen=True)
class Qm9Options:
    """Settings of a conversion.

    Attributes:
        reference: ``atoms`` subtracts ATOMREFS from U0, U, H and G; ``none`` keeps the totals.
        split: how the molecules are divided. overwrite: replace an older conversion.
    """

    reference: str = "atoms"
    split: SplitOptions = field(default_factory=SplitOptions)
    overwrite: bool = False


@one_writer
def convert_qm9(
    source: str,
    out: str | Path,
    options: Qm9Options | None = None,
    *,
    workers: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Convert QM9 to ``out/train``, ``out/val`` and ``out/test``.

    Args:
        source: see ``qm9_files.read_qm9``. out: the data set; written under a temporary name and
            moved there when complete. options: settings. workers: processes. progress: show bars.

    Returns:
        This conversion's entry in dataset.json.

    Raises:
        DataError: an unusable source, impossible splits, an existing target.
    """
    options, out = options or Qm9Options(), Path(out)
    if options.reference not in REFERENCES:
        raise DataError(f"--reference {options.reference}: give one of {', '.join(REFERENCES)}")
    check_target(out, None, options.overwrite)
    arrays = read_qm9(str(source), progress)
    splits, split_record = make_split(len(arrays.index), options.split, DEFAULT_SPLIT, source)
    molecules = to_molecules(arrays, options.reference)
    check_molecules(
        molecules,
        np.concatenate(list(splits.values())),
        "download the source again, or leave the molecule out with --train-indices ...",
    )
    entry = {
        "options": asdict(options),
        "energy_reference": _reference(options.reference),
        "hartree_in_eV": HARTREE,
        "sources": [{**file_record(path), "kind": arrays.kind} for path in arrays.paths],
        "dropped": {"uncharacterised": arrays.removed},
        "split": split_record,
        "pbc": ["FFF"],
    }
    what = "molecular properties LMDB"
    made = DataSet(molecules, splits, entry, described=what, units=UNITS, measured=(TRAIN,))
    return write(out, made, workers=workers, progress=progress)


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
