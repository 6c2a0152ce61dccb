"""What uses the molecules that were written: stock fairchem and ``ndem data check``."""

from __future__ import annotations

import numpy as np
import torch

from fairchem_kit.data.check import check_dataset
from fairchem_kit.data.record_check import CheckOptions
from fairchem_kit.data.sources.md17 import Md17
from ndem_ocp.cli import main
from test_data_molecules import KCAL, arrays, convert, save
from test_data_real import ROOT, needs


def test_energies_without_reference_keep_their_precision_through_fairchem(tmp_path):
    from fairchem.core.datasets import create_dataset, data_list_collater

    content = arrays()
    convert(save(tmp_path / "a.npz", **content), tmp_path / "out", reference="none")
    config = {"format": "lmdb", "src": str(tmp_path / "out/train"), "key_mapping": {"y": "energy"}}
    dataset = create_dataset({**config, "no_shuffle": True}, "train")
    batch = data_list_collater([dataset[i] for i in range(10)], otf_graph=True)
    assert batch.energy.dtype == torch.float64
    expected = content["energies"][batch.fid.numpy()]
    np.testing.assert_allclose(batch.energy.numpy(), expected, rtol=0, atol=1e-9)
    assert np.abs(np.float32(expected) - expected).max() > 1e-4  # what float32 would lose


def test_fairchem_makes_finite_graphs_with_use_pbc(tmp_path):
    from fairchem.core.datasets import create_dataset, data_list_collater
    from fairchem.core.models.base import GraphModelMixin

    convert(save(tmp_path / "a.npz", **arrays()), tmp_path / "out")
    config = {
        "format": "lmdb",
        "src": str(tmp_path / "out/train"),
        "key_mapping": {"y": "energy", "force": "forces"},
    }
    dataset = create_dataset(config, "train")
    batch = data_list_collater([dataset[i] for i in range(4)], otf_graph=True)
    assert batch.energy.shape == (4,)
    assert batch.forces.shape == (12, 3)
    model = GraphModelMixin()
    model.use_pbc, model.use_pbc_single, model.otf_graph = True, False, True
    graph = model.generate_graph(batch, cutoff=5.0, max_neighbors=20)
    assert graph.edge_index.shape == (2, 4 * 6)  # each atom sees the two others, and no image
    assert not graph.cell_offsets.any()
    lengths = (batch.pos[graph.edge_index[0]] - batch.pos[graph.edge_index[1]]).norm(dim=1)
    torch.testing.assert_close(graph.edge_distance, lengths)


def test_check_knows_the_unit(tmp_path, capsys):
    source = save(tmp_path / "a.npz", **arrays())
    largest = np.linalg.norm(arrays()["forces"], axis=-1).max()
    assert largest > 50 > largest * KCAL  # too large only if it were eV/A
    assert main(["data", "md17", str(source), "--out", str(tmp_path / "out"), "--train", "10",
                 "--val", "4", "--no-progress"]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "out"), "--no-progress"]) == 0
    checked = capsys.readouterr().out
    assert "no problems found" in checked
    lines = [line for line in checked.splitlines() if "energy: {" in line or "forces: {" in line]
    assert len(lines) == 2
    assert lines[0].endswith("# kcal/mol")
    assert lines[1].endswith("# kcal/mol/A")
    assert all(line in printed for line in lines)
    strict = CheckOptions(max_force=0.5 * largest * KCAL)
    findings = [f for r in check_dataset(tmp_path / "out", strict, progress=False, isolate=False)
                for f in r.findings]  # fmt: skip
    assert findings
    assert {finding.kind for finding in findings} == {"large force"}


def test_real_ethanol(tmp_path):
    folder = needs(ROOT / "md17")
    train, test = (folder / f"rmd17_ethanol_{name}_01.npz" for name in ("train", "test"))
    source = Md17(test_file=str(test), labels="original")
    entry = source.convert([train], tmp_path / "out", progress=False)
    assert [c["frames"] for c in entry["splits"].values()] == [950, 50, 1000]
    reports = check_dataset(tmp_path / "out", progress=False, isolate=False)
    assert [report.findings for report in reports] == [[], [], []]
    statistics = next(r.statistics for r in reports if r.path.endswith("train"))
    assert abs(statistics.energy_mean) < 1e-8
    assert 3 < statistics.energy_stdev < 5  # kcal/mol
    assert 25 < statistics.force_rms < 28
