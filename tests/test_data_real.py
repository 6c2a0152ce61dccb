"""Conversion of real OC20 relaxations, where they are at hand (NDEM_TEST_DATA)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fairchem_kit.data.check import check_dataset
from fairchem_kit.data.convert import convert
from fairchem_kit.data.plan import ConvertOptions
from fairchem_kit.data.reference import load_linear
from fairchem_kit.data.sources.ase import expand_sources

ROOT = Path(os.environ.get("NDEM_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def needs(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is not there; set NDEM_TEST_DATA to the folder of the test data")
    return path


def test_a_real_relaxation(tmp_path):
    folder = needs(ROOT / "oc20_dft" / "val")
    sources = expand_sources([str(folder)])[:1]
    options = ConvertOptions(energy_reference="last-frame", max_force=50)
    convert(sources, tmp_path / "out", options, progress=False)
    (report,) = check_dataset(tmp_path / "out", progress=False, isolate=False)
    assert report.findings == []
    statistics = report.statistics
    assert statistics.frames > 50
    assert statistics.systems == 1
    assert 0 < statistics.free_atoms < statistics.atoms
    assert 0.01 < statistics.force_rms < 2
    assert 1 < statistics.curvature < 50
    assert statistics.curvature_pairs > 40


def test_oc20_linear_reference_file_is_understood():
    coefficients, seen = load_linear(needs(ROOT / "fixtures" / "oc20_linref.npz"))
    assert seen[:100].all()
    assert not seen[100:].any()
    assert coefficients[8] == pytest.approx(-4.823, abs=1e-3)
