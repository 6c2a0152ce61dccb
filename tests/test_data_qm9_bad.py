"""Sources of QM9 that cannot be used, and records that `ndem data check` must find."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from fairchem_kit.data.check import check_dataset
from fairchem_kit.data.errors import DataError
from fairchem_kit.data.fields import QM9_UNITS
from fairchem_kit.data.qm9_files import read_qm9
from test_data_qm9 import INDEX, arrays, convert, npz, raw_folder
from test_data_support import record, write_split


def test_a_missing_package_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"qm9pack is not installed; `pip install qm9pack`"):
        convert("qm9pack", tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"U_au": 1, "HOMO_au": None}, r"unknown layout; it lacks \['HOMO_au'\] and has \['Dip"),
        ({"Z": np.ones(3)}, r"`Z` is float64 of shape \(3,\), expected numbers of shape"),
        ({"Index": np.r_[INDEX[:9], 3]}, "molecule 3 appears 2 times"),
        ({"Z": np.full(50, 14)}, r"`Z`: record 0 has atomic number 14; QM9 has H, C, N, O and F"),
        ({"Z": np.full(50, 6.5)}, r"`Z`: entry 0 is 6\.5, expected whole numbers"),
        ({"ZPVE_au": np.r_[np.zeros(9), np.nan]}, r"`ZPVE_au`: record 9: NaN or infinite"),
        ({"N": np.array(["3"] * 10)}, r"`N` must be a list of the numbers of atoms.*<U1"),
        ({"N": np.r_[np.nan, np.ones(9)]}, r"`N` must be a list of the numbers of atoms"),
        ({"N": np.array(12)}, r"`N` must be a list .* shape \(\)"),
        ({"Index": np.r_[INDEX[:9], 1e300]}, r"`Index`: entry 9 is 1e\+300, expected whole"),
        ({"R": np.zeros((50, 3))}, r"`R`: record 0: atoms 0\.000 A apart"),
    ],
)
def test_bad_arrays(tmp_path, changes, message):
    size = int(arrays()["N"].sum())
    for key in ("Z", "R"):  # one value for all atoms
        if key in changes and len(changes[key]) == 50:
            changes = {key: np.resize(changes[key], (size, *changes[key].shape[1:]))}
    with pytest.raises(DataError, match=rf"a\.npz.*{message}"):
        convert(npz(tmp_path / "a.npz", **changes), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("gdb9.sdf", "gdb_12", "$$$$\ngdb_12", r"gdb9\.sdf: molecule 12 is damaged"),
        ("gdb9.sdf", "$$$$\ngdb_12", "gdb_12", r"gdb9\.sdf: ends early"),
        ("gdb9.sdf", " C ", " Si", r"gdb9\.sdf: molecule 1, gdb9\.sdf\.csv: line 2: not one of"),
        ("gdb9.sdf.csv", "mol_id,A,B,C,mu", "mol_id,A,B,C,dipole", r"csv: needs the columns"),
        ("gdb9.sdf.csv", "gdb_5,", "gdb_5,1,", r"csv: line 6 has 18 columns"),
        ("uncharacterized.txt", "     9", "  nine", "not the list of uncharacterised"),
        ("uncharacterized.txt", "2 compounds\n", "", "not the list of uncharacterised"),
    ],
)
def test_bad_raw_files(tmp_path, file, old, new, message):
    folder = raw_folder(tmp_path / "raw")
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        read_qm9(str(folder), progress=False)
    (folder / file).write_bytes(b"\xff\xfe" + b"x" * 140_000)  # no text, one endless field
    with pytest.raises(DataError, match=rf"{file}"):
        read_qm9(str(folder), progress=False)
    (folder / file).unlink()
    with pytest.raises(DataError, match=rf"{file} missing"):
        read_qm9(str(folder), progress=False)


def test_check_reports_what_single_records_lack(tmp_path):
    values = dict.fromkeys(QM9_UNITS, 1.0)
    whole = [record(y=None, force=None, sid=n, **values) for n in range(4)]
    spoilt = [
        record(y=None, force=None, sid=4, **{**values, "mu": None}),
        record(y=None, force=None, sid=5, **{**values, "gap": float("nan")}),
        record(y=None, force=None, sid=6),
    ]
    split = write_split(tmp_path / "train", *whole, *spoilt)
    (report,) = check_dataset(split, progress=False, isolate=False)
    found = {(f.record, f.message) for f in report.findings if f.severity == "error"}
    assert found == {
        (None, "1 record without `mu`, which others have"),
        (5, "1 NaN or inf in `gap`"),
        (6, "neither `y` nor `energy`"),
        (6, "neither `force` nor `forces`"),
    }
    assert report.statistics.force_rms is None
    assert report.statistics.targets["alpha"] == (1.0, 0.0)
