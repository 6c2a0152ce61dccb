"""Files of somebody else run no code, unless the user says ``unsafe``."""

from __future__ import annotations

import os
import pickle
import subprocess
import zipfile
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
import yaml
from fairchem.core.datasets import create_dataset

import ndem_ocp
from conftest import short_training, tiny_config
from fairchem_kit.checkpoints import CheckpointError, UnsafeError, read_checkpoint
from fairchem_kit.checkpoints.reading import names_in
from fairchem_kit.data.errors import DataError
from fairchem_kit.files import InputError
from fairchem_kit.npz import check_npz
from ndem_ocp.cli import main

RAN = "ran"  # the file that hostile content makes, in the working directory


class Calls:
    """A value whose pickle calls ``function(*given)``."""

    def __init__(self, function, *given) -> None:
        self._call = (function, given)

    def __reduce__(self):
        return self._call


ATTACKS = {
    "subprocess": Calls(subprocess.call, ["touch", RAN]),
    "eval": Calls(eval, f"open({RAN!r}, 'w').close()"),
    "os": Calls(os.system, f"touch {RAN}"),
}
FORMATS = {"zip": True, "old": False}


@pytest.fixture(scope="module")
def checkpoint(demo_data, tmp_path_factory) -> Path:
    return short_training(demo_data, tmp_path_factory.mktemp("run")) / "checkpoint.pt"


@pytest.fixture(params=[(a, f) for a in ATTACKS for f in FORMATS], ids=lambda p: "-".join(p))
def hostile(request, checkpoint, tmp_path, monkeypatch) -> Path:
    """A good checkpoint with one value that calls something."""
    monkeypatch.chdir(tmp_path)
    attack, form = request.param
    state = torch.load(checkpoint, weights_only=True)
    state["config"]["more"] = ATTACKS[attack]
    torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=FORMATS[form])
    return tmp_path / "x.pt"


def commands(path: Path, split: Path) -> dict[str, list[str]]:
    x, data = str(path), str(split)
    splits = [w for n in ("id", "ood-ads", "ood-cat", "ood-both") for w in (f"--{n}", data)]
    return {
        "eval": ["eval", x, "--data", data, "--cpu", "--out", "out"],
        "relax": ["relax", x, "--data", data, "--cpu", "--out", "out"],
        "submission": ["submission", "write", x, *splits, "--cpu", "--out", "out.npz"],
        "export": ["export", x, "out.pt"],
        "bench": ["bench", "inference", "--checkpoint", x, "--data", data, "--device", "cpu"],
    }


def test_commands_refuse_a_checkpoint_that_runs_code(hostile, demo_data, capsys):
    for name, words in commands(hostile, demo_data / "val_id").items():
        assert main(words) == 2, name
        said = capsys.readouterr().err
        assert "x.pt was not read" in said, (name, said)
        assert "--unsafe" in said
        assert "Traceback" not in said
    assert not Path(RAN).exists()


def test_python_refuses_a_checkpoint_that_runs_code(hostile):
    for read in (ndem_ocp.calculator, read_checkpoint):
        with pytest.raises(UnsafeError, match="was not read"):
            read(hostile)
    assert not Path(RAN).exists()


@pytest.mark.parametrize(
    "way", ["checkpoint", "resume", "init_from", "init_from fairchem", "forces"]
)
def test_a_run_refuses_a_checkpoint_that_runs_code(way, hostile, demo_data, capsys):
    config = tiny_config(demo_data)
    words = ["train", "config.yml", "--cpu", "--run-dir", "run"]
    if way == "resume":
        config["task"]["resume"] = str(hostile)
    elif way.startswith("init_from"):
        kind = "fairchem" if way.endswith("fairchem") else "auto"
        config["task"]["init_from"] = {"checkpoint": str(hostile), "kind": kind}
    else:
        words += ["--checkpoint", str(hostile)]
    if way == "forces":  # fairchem's own trainer
        config["trainer"], config["task"] = "forces", {}
    Path("config.yml").write_text(yaml.safe_dump(config))
    try:
        assert main(words) == 2
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    said = capsys.readouterr().err
    assert "x.pt was not read" in said, said
    assert "unsafe: True" in said
    assert not Path(RAN).exists()


def test_unsafe_is_the_same_option_everywhere(checkpoint, demo_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = torch.load(checkpoint, weights_only=True)
    state["config"]["more"] = ATTACKS["subprocess"]
    torch.save(state, "x.pt")
    for name, words in commands(tmp_path / "x.pt", demo_data / "val_id").items():
        if name in ("eval", "export"):
            assert main([*words, "--unsafe"]) == 0
            assert Path(RAN).exists()
            os.unlink(RAN)
    ndem_ocp.calculator("x.pt", unsafe=True)
    assert Path(RAN).exists()


def test_a_checkpoint_cannot_opt_in_by_itself(checkpoint, demo_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = torch.load(checkpoint, weights_only=True)
    state["config"]["task"]["unsafe"] = True
    state["config"]["more"] = ATTACKS["os"]
    torch.save(state, "x.pt")
    assert main(commands(tmp_path / "x.pt", demo_data / "val_id")["eval"]) == 2
    assert not Path(RAN).exists()


def test_names_in_a_checkpoint_are_told_without_importing_them(tmp_path):
    for zipped in FORMATS.values():
        torch.save({"a": torch.ones(1), "b": ATTACKS["subprocess"]}, tmp_path / "x.pt",
                   _use_new_zipfile_serialization=zipped)  # fmt: skip
        assert {"subprocess.call", "torch._utils._rebuild_tensor_v2"} <= names_in(tmp_path / "x.pt")
        with pytest.raises(CheckpointError, match=r"\(subprocess\.call\)"):
            read_checkpoint(tmp_path / "x.pt")
    for content in (b"", b"\x80", b"\x80\x02junk", b"PK\x03\x04junk"):
        (tmp_path / "x.pt").write_bytes(content)
        assert names_in(tmp_path / "x.pt") == set()


# --- npz -----------------------------------------------------------------------------------------


def objects_in(path: Path) -> None:
    natoms = np.array([9, Calls(os.system, f"touch {RAN}")], dtype=object)
    np.savez(path, natoms=natoms)


def pickle_as(path: Path) -> None:
    """No archive: numpy takes it for a pickle where that is allowed."""
    path.write_bytes(pickle.dumps(Calls(os.system, f"touch {RAN}")))


def both(path: Path) -> None:
    """A pickle for numpy and an archive for zipfile, which looks at the end."""
    pickle_as(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("natoms.npy", b"")


@pytest.fixture(params=[objects_in, pickle_as, both])
def split(request, demo_data, tmp_path, monkeypatch) -> Path:
    """A split whose metadata.npz runs code where pickle is allowed."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "split"
    folder.mkdir()
    (folder / "data.0000.lmdb").symlink_to(demo_data / "val_id" / "data.0000.lmdb")
    request.param(folder / "metadata.npz")
    return folder


def test_metadata_with_objects_are_refused_unread(split, checkpoint, capsys):
    with pytest.raises(InputError, match=r"metadata\.npz"):
        check_npz(split / "metadata.npz")
    with pytest.raises(DataError, match=r"metadata\.npz"):
        create_dataset({"src": str(split), "format": "ndem_lmdb"}, "val")
    for name, words in commands(checkpoint, split).items():
        if name != "export":
            assert main(words) == 2, name
            said = capsys.readouterr().err
            assert "metadata.npz" in said or (name == "relax" and "single points" in said)
    assert not Path(RAN).exists()


@pytest.mark.parametrize("reader", ["ndem_lmdb", "lmdb"])
def test_a_run_refuses_metadata_with_objects(split, demo_data, reader, capsys):
    config = tiny_config(demo_data)
    config["dataset"]["val"]["src"] = str(split)
    config["dataset"]["train"]["format"] = config["dataset"]["val"]["format"] = reader
    config["optim"]["load_balancing"] = "atoms"
    Path("config.yml").write_text(yaml.safe_dump(config))
    try:
        assert main(["train", "config.yml", "--cpu", "--run-dir", "run"]) == 2
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    said = capsys.readouterr().err
    assert "dataset.val" in said, said
    assert "metadata.npz" in said, said
    assert not Path(RAN).exists()


def test_a_linear_reference_with_objects_is_refused_unread(demo_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("reference.npz", coeff=np.array([Calls(os.system, f"touch {RAN}")], dtype=object))
    section = {"src": str(demo_data / "val_id"), "format": "ndem_lmdb", "lin_ref": "reference.npz"}
    with pytest.raises(
        DataError,
        match=r"reference\.npz: the array 'coeff' contains Python "
        r"objects",
    ):
        create_dataset(section, "val")
    assert not Path(RAN).exists()


def test_records_of_a_foreign_split_run_nothing(
    checkpoint, demo_data, tmp_path, monkeypatch, capsys
):
    """Whichever reader the checkpoint's run had."""
    monkeypatch.chdir(tmp_path)
    state = torch.load(checkpoint, weights_only=True)
    state["config"]["dataset"]["format"] = "lmdb"
    state["config"]["val_dataset"]["format"] = "lmdb"
    torch.save(state, "x.pt")
    (tmp_path / "split").mkdir()
    env = lmdb.open(str(tmp_path / "split" / "data.0000.lmdb"), subdir=False, map_size=2**20)
    with env.begin(write=True) as transaction:
        transaction.put(b"0", pickle.dumps(ATTACKS["os"]))
        transaction.put(b"length", pickle.dumps(1))
    env.close()
    assert main(commands(tmp_path / "x.pt", tmp_path / "split")["eval"]) == 2
    assert "data.0000.lmdb" in capsys.readouterr().err
    assert not Path(RAN).exists()
    good = demo_data / "val_id"
    assert main(commands(tmp_path / "x.pt", good)["eval"]) == 0
