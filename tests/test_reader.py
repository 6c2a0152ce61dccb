"""``format: ndem_lmdb``: a drop-in for ``format: lmdb`` that names what is wrong, or skips it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from ase.neighborlist import primitive_neighbor_list
from fairchem.core.datasets import LmdbDataset, create_dataset
from torch_geometric.data import Data

from fairchem_kit.data.errors import DataError
from fairchem_kit.data.reader import (
    LmdbFile,
    LmdbReader,
    RecordError,
    TooManyBadRecords,
    limits_from_model,
)
from fairchem_kit.data.reader.geometry import lonely_atom
from reliability import observed
from test_data_check import put
from test_data_support import record, write_split

KEYS = {"y": "energy", "force": "forces"}


def equal(first: Data, second: Data) -> bool:
    if list(first.keys()) != list(second.keys()):
        return False
    pairs = [(first[key], second[key]) for key in first.keys()]  # noqa: SIM118 (a method of Data)
    return all(
        a.dtype == b.dtype and torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in pairs
    )


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"key_mapping": KEYS},
        {"key_mapping": {"y": ["energy", "other_energy"]}},
        {"transforms": {"normalizer": {"energy": {"mean": 0, "stdev": 1}}}},
        {"first_n": 7},
        {"sample_n": 5, "seed": 3},
        {"max_atoms": 13},
    ],
)
@pytest.mark.parametrize("place", ["folder", "file"])
def test_the_records_are_those_of_fairchem(demo_data, extra, place):
    source = demo_data / "train"
    config = {"src": str(source if place == "folder" else source / "data.0000.lmdb"), **extra}
    theirs = create_dataset({**config, "format": "lmdb"}, "train")
    ours = create_dataset({**config, "format": "ndem_lmdb"}, "train")
    assert len(ours) == len(theirs) > 0
    assert all(equal(ours[i], theirs[i]) for i in range(len(ours)))
    assert list(ours.indices) == list(theirs.indices)
    sizes = [dataset.get_metadata("natoms", 0) for dataset in (ours, theirs)]
    assert sizes[0] == sizes[1] is not None
    with pytest.raises(IndexError):
        ours.dataset[len(ours.dataset)]


def test_several_files_and_pickling(tmp_path):
    for name, count in (("a", 3), ("b", 1), ("c", 4)):
        split = write_split(tmp_path / name, *[record(fid=i, sid=ord(name)) for i in range(count)])
        shutil.copy(split / "data.0000.lmdb", tmp_path / f"{name}.lmdb")
    config = {"src": str(tmp_path)}
    ours, theirs = LmdbReader(config), LmdbDataset(config)
    assert len(ours) == 8
    assert [ours[i].id for i in range(8)] == [theirs[i].id for i in range(8)]
    for shard in range(3):
        part = {**config, "shard": shard, "total_shards": 3}
        ours, theirs = LmdbReader(part), LmdbDataset(part)
        assert len(ours) == len(theirs)
        assert all(equal(ours[i], theirs[i]) for i in range(len(ours)))
    ours, theirs = LmdbReader(config), LmdbDataset(config)
    copy = pickle.loads(pickle.dumps(ours))
    assert copy._files == {}
    assert all(equal(copy[i], theirs[i]) for i in range(8))


def faulty(tmp_path: Path, **changes) -> Path:
    """Four records, the third of which has a fault."""
    items = [record(fid=i) for i in range(4)]
    items[2] = record(fid=2, **changes)
    return write_split(tmp_path / "split", *items)


O2 = torch.tensor([[0.0, 0.0, 0.1], [0.0, 0.0, 9.9]])
FAULTS = [
    ("NaN energy", {"y": float("nan")}, {}, "not finite", "1 NaN or inf in `y`"),
    ("energy beyond float32", {"y": 1e39}, {}, "not finite", "in `y`"),
    ("infinite force", {"force": torch.full((2, 3), torch.inf)}, {}, "not finite", "6 NaN or inf"),
    ("NaN position", {"pos": torch.full((2, 3), torch.nan)}, {}, "not finite", "in `pos`"),
    ("NaN cell", {"cell": torch.full((1, 3, 3), torch.nan)}, {}, "not finite", "in `cell`"),
    ("atoms on top of each other", {"pos": O2}, {}, "overlap", "atoms 0 and 1 are 0.200 A"),
    (
        "isolated atom",
        {"cell": 40 * torch.eye(3).view(1, 3, 3), "pos": 16.0 * torch.eye(3)[:2]},
        {},
        "isolated",
        "no neighbour within 12 A",
    ),
    ("isolated atom for this model", {}, {"cutoff": 1.5}, "isolated", "no neighbour within 1.5 A"),
    ("element 0", {"atomic_numbers": torch.tensor([0, 8])}, {}, "value", "atomic numbers 0"),
    (
        "element beyond the model's",
        {"atomic_numbers": torch.tensor([8, 92])},
        {"max_atomic_number": 89},
        "value",
        "8 to 92",
    ),
    ("too many atoms", {}, {"max_atoms_per_graph": 1}, "size", "2 atoms .max_atoms_per_graph is 1"),
    ("cell of zero volume", {"cell": torch.zeros(1, 3, 3)}, {}, "cell", "volume 0"),
    (
        "flat cell",
        {"cell": torch.diag(torch.tensor([9.0, 9.0, 0.1]))[None]},
        {},
        "cell",
        "0.1 A high",
    ),
    (
        "cell of absurd numbers",
        {"cell": 1e38 * torch.eye(3)[None] + 1e38},
        {},
        "cell|isolated|overlap",
        "record 2",
    ),
    ("forces of other atoms", {"force": torch.zeros(3, 3)}, {}, "shape", r"`force` has shape"),
    ("natoms of another structure", {"natoms": 3}, {}, "shape", "natoms 3"),
    ("no positions", {"pos": None}, {}, "missing field", "no `pos`"),
    ("positions that are text", {"pos": "near"}, {}, "shape", "`pos` is not a number"),
]


@pytest.mark.parametrize(("fault", "changes", "limits", "kind", "message"), FAULTS)
def test_faults_are_named(tmp_path, fault, changes, limits, kind, message):
    split = faulty(tmp_path, **changes)
    good = limits == {}
    dataset = LmdbReader({"src": str(split), **limits})
    with pytest.raises(RecordError, match=message) as caught:
        dataset[2]
    error = caught.value
    assert error.kind in kind.split("|")
    assert (error.key, Path(error.file).name) == ("2", "data.0000.lmdb")
    assert "data.0000.lmdb: record 2: " in str(error)
    assert "on_bad_record: skip" in str(error)
    if good:
        assert [dataset[i].fid for i in (0, 1, 3)] == [0, 1, 3]
        skipping = LmdbReader({"src": str(split), "on_bad_record": "skip"})
        assert [skipping[i].fid for i in range(4)] == [0, 1, 3, 3]
        assert skipping.bad_records == {error.kind: 1}
    assert LmdbReader({"src": str(split), "checks": "none"})[2].fid == 2
    observed(
        "data",
        f"record: {fault}",
        1,
        "stopped with an error that names file and record and says what to do"
        + ("; or skipped and counted" if good else ""),
        "that record",
    )


def test_values_leaves_out_distances(tmp_path):
    split = faulty(tmp_path, pos=O2)
    assert LmdbReader({"src": str(split), "checks": "values"})[2].fid == 2
    with pytest.raises(RecordError):
        LmdbReader({"src": str(faulty(tmp_path / "b", y=np.nan)), "checks": "values"})[2]


def test_molecules_without_cell_and_forces_pass(tmp_path):
    molecule = {"pbc": torch.zeros(1, 3, dtype=torch.bool), "cell": torch.zeros(1, 3, 3)}
    for number, changes in enumerate(
        (molecule, {"cell": None, "pbc": None}, {**molecule, "y": None, "force": None, "gap": 1.0})
    ):
        split = write_split(tmp_path / str(number), record(**changes))
        assert LmdbReader({"src": str(split)})[0].natoms == 2
    numbers = {"natoms": torch.tensor([2]), "atomic_numbers": torch.tensor([6.0, 8.0])}
    assert (
        len(LmdbReader({"src": str(write_split(tmp_path / "old", record(**numbers)))})[0].pos) == 2
    )


def test_lonely_atoms_agree_with_ase():
    rng = np.random.default_rng(1)
    found = 0
    for trial in range(60):
        cell = 7 * np.eye(3) + rng.uniform(-2, 2, (3, 3))
        pbc = rng.random(3) < 0.6
        positions = rng.uniform(-15, 15, (6, 3))
        cutoff = rng.uniform(2, 6)
        first = primitive_neighbor_list("i", pbc, cell, positions, cutoff)
        expected = set(range(6)) - set(first.tolist())
        atom = lonely_atom(positions, cell, pbc, cutoff)
        assert (atom is None) == (not expected), trial
        assert atom is None or atom in expected, trial
        found += bool(expected)
    assert 10 < found < 55


def test_keys_and_length(tmp_path):
    def split(name, *changes):
        folder = write_split(tmp_path / name, *[record(fid=i) for i in range(5)])
        for key, value in changes:
            put(folder / "data.0000.lmdb", key, value)
        return {"src": str(folder)}

    with pytest.raises(
        RecordError, match=r"data.0000.lmdb: `length` says 9, but the file has 5 records"
    ):
        LmdbReader(split("wrong", (b"length", pickle.dumps(9))))
    with pytest.raises(RecordError, match=r"1 key missing: 3"):
        LmdbReader(split("gap", (b"3", None)))
    with pytest.raises(RecordError, match=r"1 key other than numbers: b'nextid'"):
        LmdbReader(split("foreign", (b"nextid", b"\x01")))
    with pytest.raises(RecordError, match="`length` cannot be read"):
        LmdbReader(split("hostile", (b"length", b"cos\nsystem\n(S'true'\ntR.")))
    with pytest.raises(RecordError, match="not a numbering from 0: the largest is 50000"):
        LmdbReader(split("stray", (b"50000", b"\x01")))
    assert len(LmdbReader(split("none", (b"length", None)))) == 5

    # a gap that a stray key hides from the count is found when its record is read
    hidden = LmdbReader(split("hidden", (b"3", None), (b"007", b"\x01")))
    with pytest.raises(RecordError, match="record 3: missing"):
        hidden[3]

    skip = {"on_bad_record": "skip"}
    gap = LmdbReader({**split("gap2", (b"3", None)), **skip})
    assert [gap[i].fid for i in range(5)] == [0, 1, 2, 4, 4]
    assert gap.bad_records == {"missing": 1}
    assert len(LmdbReader({**split("wrong2", (b"length", pickle.dumps(9))), **skip})) == 5
    for fault in ("a missing key", "a wrong `length`", "keys that are not numbers"):
        observed(
            "data", f"LMDB with {fault}", 1, "stopped in the first second by name; or skipped", "-"
        )


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.2, 0.05])
def test_truncated_files_are_named(demo_data, tmp_path, keep):
    path = tmp_path / "data.0000.lmdb"
    whole = (demo_data / "train" / "data.0000.lmdb").read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    for skip in ("raise", "skip"):
        with pytest.raises(RecordError, match=r"data.0000.lmdb: truncated, \d+ of \d+ bytes; copy"):
            LmdbReader({"src": str(tmp_path), "on_bad_record": skip})
    observed(
        "data",
        f"LMDB file cut off at {keep:.0%}",
        1,
        "stopped in the first second, naming the file (liblmdb: SIGBUS)",
        "nothing",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable LMDB file .it is empty"),
        (b"SQLite format 3\x00" * 999, "wrong first bytes"),
        (b"PK", "not a readable LMDB file .2 bytes"),
    ],
)
def test_foreign_files_are_named(tmp_path, content, message):
    path = tmp_path / "x.lmdb"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=message):
        LmdbReader({"src": str(path)})


def test_a_file_that_shrinks_while_it_is_read(demo_data, tmp_path):
    path = tmp_path / "data.0000.lmdb"
    shutil.copy(demo_data / "train" / "data.0000.lmdb", path)
    dataset = LmdbReader({"src": str(path)})
    assert dataset[0].natoms
    os.truncate(path, 2 * 4096)
    with pytest.raises(RecordError, match=r"record \d+: truncated while it was read"):
        [dataset[i] for i in range(len(dataset))]
    observed(
        "data",
        "LMDB file cut off while a run reads it",
        1,
        "an error naming file and record (a memory map: SIGBUS)",
        "nothing",
    )


def test_records_of_a_small_data_set_are_read_once(demo_data, monkeypatch):
    config = {"src": str(demo_data / "train"), "key_mapping": KEYS}
    dataset = LmdbReader(config)
    first = [dataset[i] for i in range(len(dataset))]
    expected = [record.clone() for record in first]
    reads = []
    monkeypatch.setattr(LmdbFile, "get", lambda file, key: reads.append(key))
    for _ in range(2):
        again = [dataset[i] for i in range(len(dataset))]
        assert all(map(equal, again, expected))
        for record_ in (*first, *again):  # whoever gets a record may change it
            record_.pos += 1
            record_.energy = 0.0
    assert not reads
    assert not pickle.loads(pickle.dumps(dataset))._kept._records  # workers start without them


@pytest.mark.parametrize(("largest", "kept"), [(2**26, 5), (40_000, 3), (5_000, 0)])
def test_memory_for_records_is_limited(tmp_path, monkeypatch, largest, kept):
    monkeypatch.setattr("fairchem_kit.data.reader.kept.LARGEST", largest)
    split = write_split(tmp_path / "split", *[record(fid=i) for i in range(5)])
    dataset = LmdbReader({"src": str(split)})
    assert [dataset[i].fid for i in (0, 1, 2, 3, 4) * 2] == [0, 1, 2, 3, 4] * 2
    assert len(dataset._kept._records) == kept


def test_every_lmdb_layout_of_pages(tmp_path):
    """Values in the leaf, in overflow pages, and in trees of one to three levels."""
    rng = np.random.default_rng(0)
    for count, largest in ((0, 1), (1, 10), (50, 9000), (3000, 300)):
        path = tmp_path / f"{count}.lmdb"
        items = {b"%d" % i: rng.bytes(int(rng.integers(largest))) for i in range(count)}
        with lmdb.open(str(path), subdir=False, map_size=2**27, sync=False) as env:
            for key in rng.permutation(list(items)):
                with env.begin(write=True) as transaction:
                    transaction.put(bytes(key), b"x" * 50)
            with env.begin(write=True) as transaction:  # old pages become free ones
                for key, value in items.items():
                    transaction.put(key, value)
        with LmdbFile(path) as file:
            assert list(file) == sorted(items)
            assert all(file.get(key) == value for key, value in items.items())
            assert file.get(b"x") is None
            assert file.get(b"") is None
            assert file.meta.entries == count
    assert file.meta.depth >= 2


def test_skipping_is_the_same_everywhere_and_has_an_end(tmp_path):
    items = [record(fid=i) for i in range(6)]
    for bad in (2, 3, 5):
        items[bad] = record(fid=bad, y=float("nan"))
    split = write_split(tmp_path / "split", *items)
    log = tmp_path / "logs" / "bad.jsonl"
    config = {"src": str(split), "on_bad_record": "skip", "bad_records_log": str(log)}
    orders = (range(6), reversed(range(6)), [5, 5, 2, 3, 0, 1, 4])
    for order in orders:
        dataset = LmdbReader(config)
        assert {i: dataset[i].fid for i in order} == {0: 0, 1: 1, 2: 4, 3: 4, 4: 4, 5: 0}
        assert dataset.bad_records == {"not finite": 3}
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == 9
    assert sorted(line["record"] for line in lines[:3]) == ["2", "3", "5"]
    assert lines[0]["file"].endswith("data.0000.lmdb")
    assert "in `y`" in lines[0]["reason"]

    few = LmdbReader({**config, "max_bad_records": 1})
    with pytest.raises(TooManyBadRecords, match=r"bad record number 2 .*max_bad_records is 1"):
        few[2]
    nothing = write_split(tmp_path / "nothing", *[record(y=float("nan")) for _ in range(3)])
    with pytest.raises(TooManyBadRecords, match="no good record"):
        LmdbReader({"src": str(nothing), "on_bad_record": "skip"})[1]
    part = LmdbReader({**config, "shard": 1, "total_shards": 2})  # records 3, 4, 5
    assert [part[i].fid for i in range(3)] == [4, 4, 4]


def test_a_failing_disk_is_never_skipped(tmp_path, monkeypatch):
    split = write_split(tmp_path / "split", record(), record())
    dataset = LmdbReader({"src": str(split), "on_bad_record": "skip"})

    def fail(*arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(RecordError, match=r"record 1: cannot be read .*Input/output error.*disk"):
        dataset[1]
    assert not dataset.bad_records


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"on_bad_recod": "skip"}, "on_bad_recod is not a key .* Did you mean 'on_bad_record'"),
        ({"max_atomic_numbers": 90}, "Did you mean 'max_atomic_number'"),
        ({"on_bad_record": "drop"}, "on_bad_record must be one of raise, skip, not 'drop'"),
        ({"checks": "all"}, "checks must be one of full, values, none"),
        ({"cutoff": "12"}, "cutoff must be a length in Angstrom"),
        ({"max_bad_records": 0.1}, "max_bad_records must be a whole number"),
        ({"min_distance": 13.0}, "min_distance must be below"),
        ({"train_on_oc20_total_energies": True}, "oc22_lmdb"),
        ({"src": "/nowhere"}, "no such file or directory"),
        ({"src": ["a", "b"]}, "one file or directory is read, not 2"),
    ],
)
def test_mistakes_in_the_section(demo_data, config, message):
    with pytest.raises(DataError, match=message):
        LmdbReader({"src": str(demo_data / "train"), **config})


def test_metadata_of_another_set(tmp_path):
    split = write_split(tmp_path / "split", record(), record(), natoms=[2, 2, 2])
    with pytest.raises(DataError, match=r"metadata.npz does not fit its 2 records"):
        create_dataset({"src": str(split), "format": "ndem_lmdb"}, "train")


def test_a_name_that_is_taken_by_the_key_mapping(tmp_path):
    split = write_split(tmp_path / "split", record(energy=1.0))
    with pytest.raises(RecordError, match="a new name already exists"):
        LmdbReader({"src": str(split), "key_mapping": KEYS})[0]


def test_limits_of_a_model():
    model = {"backbone": {"max_radius": 8.0, "max_num_elements": 90}}
    assert limits_from_model(model) == {"cutoff": 8.0, "max_atomic_number": 89}
    assert limits_from_model({"cutoff": 5, "backbone": None}) == {"cutoff": 5.0}
