"""Records of other scripts: float64, NumPy arrays, lists, no `fixed`; read as OC20's own are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import tiny_config, trainer_of
from fairchem_kit.data.check import check_dataset
from fairchem_kit.data.lmdb_writer import write_records
from fairchem_kit.data.reader import LmdbReader, RecordError
from fairchem_kit.data.reader.usual import usual_fields
from ndem_ocp.testing import steps
from test_data_support import record, write_split

FLOATS = ("pos", "cell", "force")


def double(data):
    for key in FLOATS:
        data[key] = data[key].double()
    return data


@pytest.mark.parametrize("checks", ["full", "values", "none"])
@pytest.mark.parametrize("kind", ["float64", "float16", "numpy", "lists"])
def test_numbers_are_converted_to_the_types_of_a_batch(tmp_path, kind, checks):
    usual = record(sid=3)
    other = record(sid=3)
    for key in (*FLOATS, "atomic_numbers", "fixed", "tags", "pbc"):
        value = other[key]
        if kind in ("float64", "float16") and key in FLOATS:
            other[key] = value.to(getattr(torch, kind))
        elif kind == "numpy":
            other[key] = value.double().numpy() if key in FLOATS else value.numpy()
        elif kind == "lists":
            other[key] = value.tolist()
    if kind == "numpy":
        other.natoms, other.y = np.int64(2), np.float32(-1.0)
    split = write_split(tmp_path / "train", other)
    read = LmdbReader({"src": str(split), "checks": checks})[0]
    for key in usual.keys():  # noqa: SIM118 (a Data)
        if torch.is_tensor(usual[key]):
            assert read[key].dtype == usual[key].dtype, key
            assert torch.equal(read[key], usual[key]), key
        else:
            assert (type(read[key]), read[key]) == (type(usual[key]), usual[key])


def test_all_atoms_of_a_record_that_does_not_say_are_free(tmp_path):
    split = write_split(tmp_path / "train", record(fixed=None))
    assert LmdbReader({"src": str(split)})[0].fixed.tolist() == [0, 0]


def test_a_periodicity_without_a_row_gets_one(tmp_path):
    split = write_split(tmp_path / "train", record(pbc=torch.tensor([True, True, False])))
    assert LmdbReader({"src": str(split)})[0].pbc.shape == (1, 3)


def test_far_positions_in_float64_come_near_before_they_are_rounded():
    pos = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.75]], dtype=torch.float64)
    far = record(pos=pos + torch.tensor([1e7, 0, 0]), cell=10 * torch.eye(3)[None]).to_dict()
    read = usual_fields(far)["pos"]
    assert read.dtype == torch.float32
    assert float((read[1] - read[0]).norm()) == pytest.approx(1.75, abs=1e-6)


def test_records_that_do_not_fit_a_batch_are_left_to_the_checks(tmp_path):
    split = write_split(tmp_path / "train", record(pos="here"))
    assert LmdbReader({"src": str(split), "checks": "none"})[0].pos == "here"
    with pytest.raises(RecordError, match="record 0: `pos` is not a number"):
        LmdbReader({"src": str(split)})[0]


def test_check_names_what_only_our_reader_casts(tmp_path):
    split = write_split(tmp_path / "train", double(record(fixed=None)))
    (report,) = check_dataset(split, progress=False, isolate=False)
    messages = [f.message for f in report.findings]
    assert any("`pos` float64, `cell` float64" in message for message in messages)
    assert all(f.severity == "warning" for f in report.findings)


def test_they_train(demo_data, tmp_path):
    """The whole way: the check before training, steps, validation; the same losses as OC20's."""
    source = LmdbReader({"src": str(demo_data / "train")})
    losses = []
    for name in ("usual", "other"):
        records = [source[i] for i in range(8)]
        for data in records:
            del data.id
            data.fixed = torch.zeros_like(data.fixed)
            if name == "other":
                double(data)
                del data.fixed
        (tmp_path / name).mkdir()
        write_records(tmp_path / name / "data.0000.lmdb", records, 13 * 8, 8)
        config = tiny_config(demo_data)
        config["dataset"]["train"]["src"] = str(tmp_path / name)
        config["dataset"]["val"]["src"] = str(tmp_path / name)
        config["optim"].pop("load_balancing", None)
        trainer = trainer_of(config, tmp_path / f"run-{name}")
        losses.append(steps(trainer, 2))
        trainer.validate(disable_tqdm=True)
    assert losses[0] == losses[1]
