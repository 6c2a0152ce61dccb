"""Molecule files and splits that cannot be used: what is said, and that nothing is left behind."""

from __future__ import annotations

import numpy as np
import pytest

from fairchem_kit.data import molecules
from fairchem_kit.data.errors import DataError
from ndem_ocp.cli import main
from test_data_molecules import arrays, convert, records, save


def spoiled(key, where, value) -> dict[str, np.ndarray]:
    content = arrays()
    content[key] = content[key].copy()
    content[key][where] = value
    return content


BAD = {
    "energy": (spoiled("energies", 7, np.nan), r"`energies`: record 7: NaN or infinite .*leave"),
    "forces": (spoiled("forces", (slice(5, 7), 2), np.inf), r"`forces`: record 5: .*2 records"),
    "positions": (spoiled("coords", (9, 1, 2), np.nan), r"`coords`: record 9: NaN or infinite"),
    "overlap": (spoiled("coords", (4, 1), spoiled("coords", 0, 0)["coords"][4, 2] + 0.1),
                r"`coords`: record 4: atoms 0\.173 A apart, below 0\.3 A"),
    "far": (spoiled("coords", (3, 1, 2), 1e300), r"`coords`: record 3: .*infinite in float32"),
    "element": (arrays(nuclear_charges=np.array([6, -6, 1])), "atom 1 has .* -6, .*correct"),
    "padding": (spoiled("nuclear_charges", 2, 0), r"`nuclear_charges`: atom 2 has .* 0, .*remove"),
    "table z": (arrays(nuclear_charges=np.ones((20, 3), int)), r"shape \(20, 3\).*one file per"),
    "shape": (arrays(forces=np.zeros((20, 2, 3))), r"`forces` has shape \(20, 2, 3\), expected"),
    "frames": (arrays(energies=np.zeros(19)), r"`energies` has shape \(19,\), expected \(20,\)"),
    "indices": (arrays(old_indices=np.arange(3)), r"`old_indices` has shape \(3,\)"),
    "text": (arrays(energies=np.array(["a"] * 20)), r"`energies` holds <U1, expected numbers"),
    "float z": (arrays(nuclear_charges=np.ones(3)), r"`nuclear_charges` holds float64"),
    "unknown": (arrays(coords=None), r"unknown layout; it has \['energies'.*Known are MD17 \(z"),
    "length": (arrays("MD17", r_unit="Bohr"), "`r_unit` is 'Bohr'"),
    "unit": (arrays("MD17", e_unit="K"), "`e_unit` is 'K'; convert"),
    "few": (arrays(frames=13), r"has 13 frames, not enough for 10 for training, 4 for validation"),
    "none": (arrays(frames=0), "`coords` holds no frames"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_files(tmp_path, kind):
    content, pattern = BAD[kind]
    source = save(tmp_path / "a.npz", **content)
    with pytest.raises(DataError, match=rf"(?s)a\.npz.*{pattern}"):
        convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_bad_frame_can_be_left_out(tmp_path):
    source = save(tmp_path / "a.npz", **BAD["energy"][0])
    rows = [i for i in range(20) if i != 7]
    np.savez(tmp_path / "s.npz", idx_train=rows[:9], idx_val=rows[9:12], idx_test=rows[12:])
    entry = convert(source, tmp_path / "out", split={"splits": str(tmp_path / "s.npz")})
    assert entry["split"]["unused"] == 1
    assert [fields["fid"] for fields in records(tmp_path / "out/train")] == rows[:9]


@pytest.mark.parametrize("content", [b"hello", b"9\nProperties=...\n", None])
def test_foreign_bytes_and_folders_bring_no_advice_to_unpickle(tmp_path, content):
    path = tmp_path / "a.npz"
    path.mkdir() if content is None else path.write_bytes(content)
    words = r"a\.npz: a folder; give" if content is None else r"as npz \(it is none\)"
    with pytest.raises(DataError, match=words) as refused:
        convert(path, tmp_path / "out")
    assert "pickle" not in str(refused.value)


@pytest.mark.parametrize("what", ["text", "array", "empty", "cut", "gone"])
def test_files_that_are_not_npz(tmp_path, what):
    path = tmp_path / "a.npz"
    save(path, **arrays())
    if what == "array":
        np.save(tmp_path / "b.npy", np.zeros(3))
        (tmp_path / "b.npy").replace(path)
    elif what == "gone":
        path.unlink()
    else:
        whole = path.read_bytes()
        path.write_bytes({"text": b"hello", "empty": b"", "cut": whole[: len(whole) // 2]}[what])
    with pytest.raises(DataError, match=r"a\.npz: (cannot be read as npz|one array)"):
        convert(path, tmp_path / "out")


def test_original_labels_need_a_revised_file(tmp_path):
    source = save(tmp_path / "a.npz", **arrays("MD17"))
    with pytest.raises(DataError, match=r"needs old_energies and old_forces.*Leave out the option"):
        convert(source, tmp_path / "out", labels="original")


@pytest.mark.parametrize(
    ("train", "val", "test", "message"),
    [
        ("0\n1\n20\n", "2", None, r"train\.txt: index 20 for train is out of range: .*20 frames"),
        ("0\n-1\n", "2", None, r"index -1 for train is out of range"),
        ("0\n3\n3\n", "2", None, r"index 3 for train appears 2 times"),
        (
            "0\n1\n",
            "2\n1\n",
            None,
            r"val\.txt: 1 index for val also in train, the first is 1",
        ),
        ("0\n1\n", "2\n", "4\n2\n", r"test\.txt: 1 index for test also in val, .* is 2"),
        ("0\n1.5\n", "2", None, r"train\.txt: line 2 is '1\.5', not an index"),
        ("", "2", None, r"train\.txt: no index for training"),
        ("0\n1\n", None, None, "index files are needed for training and validation"),
    ],
)
def test_bad_index_files(tmp_path, train, val, test, message):
    split = {}
    for name, text in (("train", train), ("val", val), ("test", test)):
        if text is not None:
            (tmp_path / f"{name}.txt").write_text(text)
            split[f"{name}_indices"] = str(tmp_path / f"{name}.txt")
    source = save(tmp_path / "a.npz", **arrays())
    with pytest.raises(DataError, match=message):
        convert(source, tmp_path / "out", split=split)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"idx_train": [0], "idx_val": [1]},
            r"the key `idx_test` is missing; it has \['idx_train', 'idx_val'",
        ),
        ({"idx_train": [0.5], "idx_val": [1], "idx_test": [2]}, "`idx_train` is float64"),
        ({"idx_train": [0], "idx_val": [1], "idx_test": [2, 0]}, "1 index for test also in train"),
    ],
)
def test_bad_split_files(tmp_path, content, message):
    source = save(tmp_path / "a.npz", **arrays())
    np.savez(tmp_path / "splits.npz", **content)
    with pytest.raises(DataError, match=message):
        convert(source, tmp_path / "out", split={"splits": str(tmp_path / "splits.npz")})


def test_contradicting_options(tmp_path):
    source = save(tmp_path / "a.npz", **arrays())
    rows = {"splits": "s.npz"}
    for options, message in (
        ({"split": {**rows, "train": 3}}, "leave out --train"),
        ({"split": rows, "test_file": str(tmp_path / "b.npz")}, "contradict"),
        ({"split": {**rows, "val_indices": "x"}}, "not both"),
        ({"split": {"train": 0}}, "--train must be at least 1"),
        ({"units": "Ry"}, "--units Ry"),
    ):
        with pytest.raises(DataError, match=message):
            convert(source, tmp_path / "out", **options)


def test_an_interruption_leaves_nothing_and_the_old_data(tmp_path, monkeypatch, capsys):
    source = save(tmp_path / "a.npz", **arrays())
    command = ["data", "md17", str(source), "--out", str(tmp_path / "out"), "--train", "10",
               "--val", "4", "--no-progress", "--workers", "1"]  # fmt: skip
    assert main(command) == 0
    before = (tmp_path / "out/dataset.json").read_bytes()
    assert main(command) == 2
    assert "already holds a data set" in capsys.readouterr().err
    original, calls = molecules.Record, []

    def interrupted(**fields):
        calls.append(fields)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return original(**fields)

    monkeypatch.setattr(molecules, "Record", interrupted)
    assert main([*command, "--overwrite"]) == 130
    assert len(calls) == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "out"]
    assert (tmp_path / "out/dataset.json").read_bytes() == before
