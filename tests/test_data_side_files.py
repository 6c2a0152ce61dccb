"""Files beside the data: index lists, splits and energy references that are of no use."""

from __future__ import annotations

import numpy as np
import pytest
from ase.io import write

from fairchem_kit.data.errors import DataError
from fairchem_kit.files import InputError
from fairchem_kit.npz import read_npz
from test_data_molecules import arrays, convert, save
from test_data_support import make_frames, run


def test_an_index_beyond_all_integers_is_named(tmp_path):
    (tmp_path / "train.txt").write_text("0\n99999999999999999999\n")
    (tmp_path / "val.txt").write_text("1\n")
    split = {f"{name}_indices": str(tmp_path / f"{name}.txt") for name in ("train", "val")}
    with pytest.raises(DataError, match=r"train\.txt: line 2 is '99999999999999999999'"):
        convert(save(tmp_path / "a.npz", **arrays()), tmp_path / "out", split=split)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe\x00", "this is not text; for npz use --splits"),
        (None, "this is a directory, but a file is needed"),
    ],
)
def test_index_files_that_are_no_text(tmp_path, content, words):
    path = tmp_path / "train.txt"
    path.mkdir() if content is None else path.write_bytes(content)
    split = {"train_indices": str(path), "val_indices": str(path)}
    with pytest.raises(DataError, match=rf"train\.txt: {words}"):
        convert(save(tmp_path / "a.npz", **arrays()), tmp_path / "out", split=split)


def of_no_use(folder) -> dict[str, bytes]:
    """Contents of a file that is no npz, or a damaged one."""
    np.save(folder / "one.npy", np.arange(3))
    np.savez(folder / "good.npz", coeff=np.zeros(100), idx_train=np.arange(500))
    np.savez(folder / "objects.npz", idx_train=np.array([{}]), coeff=np.array([{}]))
    good = (folder / "good.npz").read_bytes()
    return {
        "text": b"0\n1\n",
        "empty": b"",
        "one array": (folder / "one.npy").read_bytes(),
        "objects": (folder / "objects.npz").read_bytes(),
        "cut off": good[: len(good) // 2],
        "damaged": good[:300] + b"x" * 40 + good[340:],
    }


@pytest.mark.parametrize(
    "kind", ["text", "empty", "one array", "objects", "cut off", "damaged", "missing", "folder"]
)
def test_files_that_are_no_npz_bring_one_sentence_and_no_advice_to_unpickle(tmp_path, kind):
    path = tmp_path / "side.npz"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(of_no_use(tmp_path)[kind])
    write(tmp_path / "a.traj", make_frames())
    source = save(tmp_path / "a.npz", **arrays())
    said = []
    with pytest.raises(InputError) as refused:
        read_npz(path)
    said.append(str(refused.value))
    with pytest.raises(DataError) as refused:
        convert(source, tmp_path / "out", split={"splits": str(path)})
    said.append(str(refused.value))
    with pytest.raises(DataError) as refused:
        run([tmp_path / "a.traj"], tmp_path / "out", energy_reference=str(path))
    said.append(str(refused.value))
    for sentence in said:
        assert "side.npz" in sentence
        assert "pickle" not in sentence
        assert "numpy." not in sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"coeff": np.array(["a", "b"])}, "needs an array `coeff` of numbers"),
        ({"coeff": np.zeros(100) + 1j}, "it has coeff complex128"),
        ({"coeff": np.zeros(100), "seen": np.ones(3)}, "`seen` of that length"),
        ({"coeff": np.zeros(100), "seen": np.array(1)}, r"seen int64 \(\)"),
        ({"coeff": np.full(100, 1e300)}, "no coefficient for O, Cu"),
    ],
)
def test_energy_references_that_cannot_be_subtracted(tmp_path, content, words):
    np.savez(tmp_path / "ref.npz", **content)
    write(tmp_path / "a.traj", make_frames())
    with pytest.raises(DataError, match=words):
        run([tmp_path / "a.traj"], tmp_path / "out", energy_reference=str(tmp_path / "ref.npz"))
