"""QM9 from all its sources -> LMDBs, read back with stock fairchem where that matters."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule

from fairchem_kit.data.check import check_dataset
from fairchem_kit.data.fields import QM9_UNITS
from fairchem_kit.data.index_split import SplitOptions
from fairchem_kit.data.qm9_files import COLUMNS, read_qm9
from fairchem_kit.data.sources.qm9 import ATOMREFS, HARTREE, Qm9
from ndem_ocp.cli import main
from test_data_real import ROOT, needs
from test_data_support import records

NAMES = ["CH4", "NH3", "H2O", "C2H2", "HCN", "H2CO", "C2H6", "CH3OH", "CF4", "CH3CN"]
#: gap in the numbering, as after the removal of uncharacterised molecules
INDEX = np.array([1, 2, 3, 4, 5, 6, 7, 8, 11, 12])


def targets(seed=0) -> dict[str, np.ndarray]:
    """Targets of all molecules in QM9's units, rounded as the csv files hold them."""
    rng = np.random.default_rng(seed)
    return {name: np.round(rng.normal(-40, 10, len(NAMES)), 6) for name in COLUMNS}


def arrays(**changes) -> dict[str, np.ndarray]:
    molecules = [molecule(name) for name in NAMES]
    content = {
        "R": np.concatenate([m.positions for m in molecules]).astype(np.float32),
        "Z": np.concatenate([m.numbers for m in molecules]).astype(np.uint8),
        "N": np.array([len(m) for m in molecules], dtype=np.uint8),
        "Index": INDEX,
        "smiles": np.array(NAMES),
    }
    content |= {COLUMNS[name][1]: values for name, values in targets().items()}
    return {key: value for key, value in (content | changes).items() if value is not None}


def npz(path: Path, **changes) -> Path:
    np.savez(path, **arrays(**changes))
    return path


def raw_folder(folder: Path) -> Path:
    """PyTorch Geometric's raw folder: molecules 9 and 10 are there, and uncharacterised."""
    folder.mkdir(parents=True)
    rows = {index: number for number, index in enumerate(INDEX)}
    sdf, table = [], ["mol_id,A,B,C," + ",".join(raw for raw, _ in COLUMNS.values()) + ",u0_atom"]
    for index in range(1, 13):
        number = rows.get(index, 0)
        atoms = molecule(NAMES[number])
        sdf += [f"gdb_{index}", " -OEChem-", "", f"{len(atoms):3d}  0  0     0  0"]
        sdf += [f"{x:10.4f}{y:10.4f}{z:10.4f} {s:2s}  0  0  0  0"
                for s, (x, y, z) in zip(atoms.symbols, atoms.positions)]  # fmt: skip
        sdf += ["M  END", "$$$$"]
        values = ",".join(str(v[number]) for v in targets().values())
        table.append(f"gdb_{index},1,2,3,{values},0.0")
    (folder / "gdb9.sdf").write_text("\n".join(sdf) + "\n")
    (folder / "gdb9.sdf.csv").write_text("\n".join(table) + "\n")
    listed = ["text 1"] * 9 + ["     9  C  C1", "    10  N  N1", "2 compounds"]
    (folder / "uncharacterized.txt").write_text("\n".join(listed) + "\n")
    return folder


def pack(folder: Path) -> Path:
    """A package qm9pack with two tables, its numbers written as `0.` in part."""
    (folder / "qm9pack" / "data").mkdir(parents=True)
    (folder / "qm9pack" / "__init__.py").write_text("raise ImportError('not to be imported')\n")
    names = [name for _, name in COLUMNS.values()]
    for part, rows in enumerate((range(6), range(6, len(NAMES))), 1):
        lines = ["XYZ_file,Index,Elements,XYZ_Ang," + ",".join(names)]
        for row in rows:
            atoms = molecule(NAMES[row])
            elements = ",".join(f"'{s}'" for s in atoms.symbols)
            xyz = ",".join("[" + ",".join("0." if v == 0 else f"{v:.8f}" for v in p) + "]"
                           for p in atoms.positions)  # fmt: skip
            values = ",".join(str(v[row]) for v in targets().values())
            lines.append(f'"x.xyz",{INDEX[row]},"[{elements}]","[{xyz}]",{values}')
        (folder / f"qm9pack/data/qm9_part{part}.csv").write_text("\n".join(lines) + "\n")
    return folder


def convert(source, out, *, train=6, val=2, workers=1, **options):
    split = SplitOptions(train=train, val=val, **options.pop("split", {}))
    settings = Qm9(split=split, **options)
    return settings.convert(str(source), out, workers=workers, progress=False)


@pytest.fixture
def installed_pack(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(pack(tmp_path / "site")))
    importlib.invalidate_caches()
    monkeypatch.delitem(sys.modules, "qm9pack", raising=False)


def test_atom_references_are_those_of_pytorch_geometric():
    from torch_geometric.datasets import qm9 as pyg

    assert pyg.HAR2EV == HARTREE
    for column, name in enumerate(QM9_UNITS):
        stored = pyg.atomrefs.get(column, [0.0] * 5)
        ours = [ATOMREFS.get(name, {}).get(z, 0.0) * HARTREE for z in (1, 6, 7, 8, 9)]
        # stored in eV there, from a Hartree that differs in the ninth digit
        np.testing.assert_allclose(ours, stored, rtol=1e-8)


@pytest.mark.parametrize("kind", ["npz", "raw", "folder above raw", "qm9pack"])
def test_records_of_every_source(tmp_path, kind, installed_pack):
    source = "qm9pack"
    if kind == "npz":
        source = npz(tmp_path / "a.npz")
    elif kind != "qm9pack":
        raw = raw_folder(tmp_path / "root" / "raw")
        source = raw if kind == "raw" else raw.parent
    entry = convert(source, tmp_path / "out")
    assert [c["frames"] for c in entry["splits"].values()] == [6, 2, 2]
    assert entry["dropped"]["uncharacterised"] == (2 if "raw" in kind else 0)
    written = [f for split in ("train", "val", "test") for f in records(tmp_path / "out" / split)]
    assert sorted(fields["sid"] for fields in written) == INDEX.tolist()
    for fields in written:
        row = int(np.flatnonzero(fields["sid"] == INDEX)[0])
        atoms = molecule(NAMES[row])
        assert fields["atomic_numbers"].tolist() == atoms.numbers.tolist()
        np.testing.assert_allclose(fields["pos"], atoms.positions, rtol=0, atol=6e-5)
        for name, unit in QM9_UNITS.items():
            expected = targets()[name][row]
            if name in ATOMREFS:
                expected -= sum(ATOMREFS[name][int(z)] for z in atoms.numbers)
            expected *= HARTREE if unit == "eV" else 1
            assert fields[name] == pytest.approx(expected, abs=1e-9), name
        assert not {"force", "forces", "y", "energy"} & fields.keys()
        assert (fields["natoms"], fields["fid"]) == (len(atoms), 0)
        assert fields["tags"].tolist() == [2] * len(atoms)
        assert fields["fixed"].tolist() == [0] * len(atoms)


def test_check_and_normalizer_lines(tmp_path, capsys):
    source = npz(tmp_path / "a.npz")
    command = ["data", "qm9", str(source), "--out", str(tmp_path / "out"), "--train", "6",
               "--val", "2", "--no-progress"]  # fmt: skip
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "out"), "--strict", "--no-progress"]) == 0
    checked = capsys.readouterr().out
    values = np.array([fields["U0"] for fields in records(tmp_path / "out/train")])
    line = f"        U0: {{mean: {values.mean():.8f}, stdev: {values.std():.8f}}}  # eV"
    for text in (printed, checked):
        assert line in text.splitlines()
        assert "# cal/(mol K)" in text
        assert "key_mapping" not in text
        assert "forces" not in text
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert content["units"]["alpha"] == "a0^3"
    reference = content["conversions"][0]["energy_reference"]
    assert reference["atoms_Hartree"]["G"]["9"] == -99.733544
    assert reference["targets"] == ["U0", "U", "H", "G"]
    mean, stdev = content["conversions"][0]["statistics"]["train"]["targets"]["U0"]
    assert (mean, stdev) == pytest.approx((values.mean(), values.std()))


def test_fairchem_reads_graphs_and_targets(tmp_path):
    from fairchem.core.datasets import create_dataset, data_list_collater
    from fairchem.core.models.base import GraphModelMixin

    convert(npz(tmp_path / "a.npz"), tmp_path / "out", reference="none")
    dataset = create_dataset(
        {"format": "lmdb", "src": str(tmp_path / "out/train"), "no_shuffle": True}, "train"
    )
    batch = data_list_collater([dataset[i] for i in range(6)], otf_graph=True)
    rows = [int(np.flatnonzero(sid == INDEX)[0]) for sid in batch.sid]
    for name in QM9_UNITS:
        assert batch[name].shape == (6,)
        assert batch[name].dtype == torch.float64
    np.testing.assert_allclose(batch.U0, targets()["U0"][rows] * HARTREE, rtol=1e-13)
    model = GraphModelMixin()
    model.use_pbc, model.use_pbc_single, model.otf_graph = True, False, True
    graph = model.generate_graph(batch, cutoff=6.0, max_neighbors=40)
    assert graph.edge_index.shape[1] == int((batch.natoms * (batch.natoms - 1)).sum())
    assert torch.isfinite(graph.edge_distance).all()


def test_real_qm9(tmp_path):
    source = needs(ROOT / "qm9" / "qm9_130831.npz")
    entry = convert(source, tmp_path / "out", train=300, val=50, split={"test": 50})
    assert entry["split"]["unused"] == 130_431
    (report,) = check_dataset(tmp_path / "out/train", progress=False, isolate=False)
    assert report.findings == []
    mean, stdev = report.statistics.targets["U0"]
    assert -78 < mean < -74  # eV; atomisation energies
    assert 8 < stdev < 13
    methane = read_qm9(str(source), progress=False)
    assert methane.targets["mu"][0] == 0
    assert methane.natoms[0] == 5
