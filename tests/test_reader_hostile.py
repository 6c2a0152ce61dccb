"""Pickles that would run something, and the layouts that must be read all the same."""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from fairchem_kit.data.reader.errors import Refused
from fairchem_kit.data.reader.opcodes import scan
from fairchem_kit.data.reader.tensors import quick_storage
from fairchem_kit.data.reader.unpickle import _long_way, load_fields, load_storage
from reliability import observed
from test_data_real import ROOT, needs
from test_data_support import record
from test_reader_fuzz import old_layout, pickled


def same(first, second) -> bool:
    if torch.is_tensor(first):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second)
    return type(first) is type(second) and first == second


@pytest.mark.parametrize("protocol", range(6))
def test_layouts_and_protocols(protocol):
    view = torch.arange(12.0).view(4, 3)
    data = record(
        stress=np.arange(9.0).reshape(3, 3).T,
        order=np.asfortranarray(np.arange(6).reshape(2, 3)),
        big_endian=np.arange(3, dtype=">f4"),
        flags=np.array([True, False]),
        scalar=np.float64(-1.25),
        names=["a", "b"],
        columns=view[:, 1],
        half=torch.ones(2, dtype=torch.float16),
        empty=torch.zeros(0, 3),
        mask=torch.tensor([True, False]),
        blob=b"\x00\xff",
        more={"k": (1, 2.5)},
    )
    for layout in (data, old_layout(data)):
        fields = load_fields(pickled(layout, protocol))
        assert set(fields) == set(data.keys())
        for key, value in fields.items():
            if key == "big_endian":  # torch takes the machine's order only
                assert np.array_equal(value, data[key])
                assert value.dtype == np.float32
            else:
                assert same(value, data[key]), key
    numpy_1 = pickled(data, protocol).replace(b"numpy._core", b"numpy.core")
    if protocol < 4:  # lengths come before names in newer ones
        assert same(load_fields(numpy_1)["stress"], data.stress)


def test_real_oc22_records_of_every_protocol():
    count = 0
    for name in ("train", "val"):
        path = needs(ROOT / "fixtures" / f"oc22_pickle16_{name}.pkl")
        with path.open("rb") as file:
            frames = pickle.load(file)
        for data in frames:
            for protocol in range(6):
                fields = load_fields(pickle.dumps(data, protocol=protocol))
                assert fields.keys() == set(data.keys())
                assert all(same(fields[key], data[key]) for key in fields)
                count += 1
    assert count == 192


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def proof(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


def hostile(tmp_path: Path) -> dict[str, object]:
    mark = str(proof(tmp_path))
    code = f"open({mark!r}, 'w').close()"
    inner = pickle.dumps(Call(exec, code), protocol=2)
    zipped = io.BytesIO()
    torch.save({"a": Call(exec, code)}, zipped)
    legacy = io.BytesIO()
    torch.save(Call(exec, code), legacy, _use_new_zipfile_serialization=False)
    return {
        "os.system": Call(os.system, f"touch {mark}"),
        "eval": Call(eval, code),
        "exec": Call(exec, code),
        "Path.touch": Call(Path.touch, Path(mark)),
        "getattr": Call(getattr, Path, "touch"),
        "pickle.loads": Call(pickle.loads, inner),
        "torch.load inside bytes": Call(torch.storage._load_from_bytes, zipped.getvalue()),
        "torch.load of an old file": Call(torch.storage._load_from_bytes, legacy.getvalue()),
        "_load_from_bytes of a pickle": Call(torch.storage._load_from_bytes, inner),
        "numpy.load": Call(np.load, mark, None, True),
        "memory": Call(bytearray, 10**12),
        "array": Call(np.ndarray, (10**12,)),
    }


def test_nothing_that_a_record_names_is_run(tmp_path):
    tried = 0
    for call in hostile(tmp_path).values():
        for protocol in range(6):
            data = pickle.dumps(record(extra=call), protocol=protocol)
            alone = pickle.dumps(call, protocol=protocol)
            for raw in (data, alone):
                with pytest.raises(Refused):
                    load_fields(raw)
                tried += 1
    assert not proof(tmp_path).exists()
    # the same bytes do run elsewhere
    pickle.loads(pickle.dumps(hostile(tmp_path)["os.system"]))
    assert proof(tmp_path).exists()
    observed(
        "data",
        "records that call os.system, eval, exec, torch.load inside bytes, ...",
        tried,
        "each refused; nothing ran",
        "the records",
    )


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\x80\x04N" + b"r" + struct.pack("<I", 2**31) + b".", "memo number"),
        (b"N" + b"p2000000000\n.", "memo number"),
        (b"\x80\x04N" + b"\x85" * 100_000 + b".", "tuples"),
        (b"]" + b"2" * 2_000_000 + b".", "operations"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "operation"),
        (b"\x80\x02\x82\x01.", "operation"),
        (b"I" + b"9" * 100_000 + b"\n.", "a line of"),
        (b"\x80\x04\x8d" + b"\xff" * 8, "too early"),
        (b"", "too early"),
        (b"\x80\x04N.", "not a torch_geometric Data"),
    ],
)
def test_pickle_bombs(raw, message):
    with pytest.raises(Refused, match=message):
        load_fields(raw)


def test_containers_that_hold_one_another_end():
    inside: list = []
    for _ in range(7):
        inside = [inside] * 100
    with pytest.raises(Refused, match="a field that is not"):
        load_fields(pickle.dumps(record(extra=inside)))


def test_a_record_cannot_change_the_reader():
    """BUILD gives an object a state; the entries of the table must not take one."""
    table = [
        (b"torch._utils", b"_rebuild_tensor_v2"),
        (b"torch_geometric.data.data", b"Data"),
        (b"torch_geometric.data.data", b"DataEdgeAttr"),
        (b"numpy", b"dtype"),
        (b"collections", b"OrderedDict"),
        (b"builtins", b"object"),
    ]
    for module, name in table:
        for state in (b"}S'x'\nI1\ns", b"(N}S'__call__'\nI1\nst", b"(N}S'__new__'\nI1\nst"):
            with pytest.raises(Refused):
                load_fields(b"c" + module + b"\n" + name + b"\n" + state + b"b.")
    assert set(load_fields(pickle.dumps(record()))) == set(record().keys())


def test_tensors_that_reach_outside_of_their_numbers():
    raw = pickle.dumps(record(), protocol=2)
    size = b"K\x02K\x03\x86"  # (2, 3) of the forces
    assert raw.count(size)
    for other in (b"K\x02K\x04\x86", b"K\x09K\x03\x86", b"J\xff\xff\xff\xffK\x03\x86"):
        with pytest.raises(Refused, match="a tensor"):
            load_fields(raw.replace(size, other, 1))


def test_storages_with_another_header():
    tensor = torch.arange(5, dtype=torch.int64)
    _, (raw,) = tensor.untyped_storage().__reduce__()
    assert bytes(load_storage(raw).tensor.numpy()) == tensor.numpy().tobytes()
    _, (raw,) = torch.storage.TypedStorage(
        wrap_storage=tensor.untyped_storage(), dtype=torch.int64, _internal=True
    ).__reduce__()
    assert torch.equal(quick_storage(raw).tensor, tensor)
    assert torch.equal(_long_way(raw).tensor, tensor)
    with pytest.raises(Refused):
        _long_way(raw[:-1])
    assert scan(raw) == raw.index(b".") + 1


def test_old_names_of_copyreg():
    raw = pickled(old_layout(record()), 1).replace(b"ccopyreg", b"ccopy_reg")
    assert copyreg.__name__ == "copyreg"
    assert set(load_fields(raw)) == set(record().keys())


def test_new_structures_hold_only_their_own_fields():
    data = Data(pos=torch.zeros(1, 3), natoms=1)
    data._private = "x"
    assert set(load_fields(pickle.dumps(data))) == {"pos", "natoms"}
