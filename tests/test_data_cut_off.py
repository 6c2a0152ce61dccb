"""Files that end too early: one sentence, the first frame that is missing, and no wrong number."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
from ase.io import write

from fairchem_kit.data.errors import DataError
from fairchem_kit.data.frame_files import iter_frames
from fairchem_kit.data.frames import LabelOptions
from fairchem_kit.data.sources.ase import expand_sources
from ndem_ocp.cli import main
from test_data_support import make_frames, run

COUNT = 6
NAMES = ("a.traj", "a.extxyz", "a.db", "a.json")
#: what libraries say about such files
THEIRS = ("buffer", "Error", "delimiter", "malformed", "NoneType", "tuple", "column 1")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    for name in NAMES:
        write(folder / name, make_frames(count=COUNT))
    return folder


def read(path: Path) -> tuple[list[np.ndarray], list[tuple[int | None, str]]]:
    """Positions and forces of the readable frames, and the errors."""
    good, bad = [], []
    for number, found in iter_frames(expand_sources([str(path)])[0]):
        if isinstance(found, Exception):
            bad.append((number, str(found)))
        else:
            assert number == len(good)
            good.append(np.hstack([found.positions, found.get_forces(apply_constraint=False)]))
    return good, bad


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_anywhere_is_one_error_and_no_number_is_wrong(whole, tmp_path, name):
    content = (whole / name).read_bytes()
    expected, _ = read(whole / name)
    assert len(expected) == COUNT
    size = len(content)
    # at even distances, more in the last line, and at every byte of its last number
    for keep in [
        *range(1, size - 110, size // 20),
        *range(size - 110, size - 10, 7),
        *range(size - 10, size - 1),
    ]:
        (tmp_path / name).write_bytes(content[:keep])
        good, bad = read(tmp_path / name)
        assert all(np.array_equal(a, b) for a, b in zip(good, expected, strict=False)), keep
        if len(good) < COUNT and not bad:  # between two frames: this file does not say how many
            assert name == "a.extxyz"
            assert content[keep : keep + 3].lstrip(b"\n").startswith(b"9\n"), keep
            continue
        assert len(bad) == 1, (keep, bad)
        number, said = bad[0]
        assert number in (None, len(good))
        assert not any(word in said for word in THEIRS), said
        assert "cut off" in said or "number of atoms" in said or "not an" in said, said


def test_the_message_names_file_frame_number_of_frames_and_what_to_do(whole, tmp_path, capsys):
    content = (whole / "a.traj").read_bytes()
    (tmp_path / "half.traj").write_bytes(content[: len(content) // 2])
    text = (whole / "a.extxyz").read_text()
    (tmp_path / "half.extxyz").write_text(text[: len(text) // 2 + 200])
    for name, missing in (
        ("half.traj", r"this frame and \d frames? after it are missing or damaged"),
        ("half.extxyz", r"the file ends after \d of its 9 atoms"),
    ):
        for command in (["data", "ase"], ["fit"]):
            words = [*command, str(tmp_path / name), "--out", str(tmp_path / "out")]
            assert main(words) == 2
            said = capsys.readouterr().err
            line = next(line for line in said.splitlines() if line.startswith("ndem: "))
            pattern = (
                rf"{name}: frame [2-4]: cannot be read: {missing}; the file is probably cut off"
            )
            assert re.search(pattern, line), said
            assert line.endswith(
                "Nothing was written: correct this, or leave it out with --skip-bad"
            )
            assert not (tmp_path / "out").exists()


def test_a_frame_damaged_inside_does_not_hide_the_frames_after_it(whole, tmp_path):
    content = (whole / "a.traj").read_bytes()
    place = content.index(b'"positions', content.index(b'"positions') + 1)
    (tmp_path / "a.traj").write_bytes(content[:place] + b"\0" * 4 + content[place + 4 :])
    entry = run([tmp_path / "a.traj"], tmp_path / "out", skip_bad=True)
    assert [b["frame"] for b in entry["dropped"]["bad"]] == [1]
    assert entry["splits"]["train"]["frames"] == COUNT - 1


def test_an_atom_without_all_its_columns_is_named(whole, tmp_path):
    lines = (whole / "a.extxyz").read_text().splitlines()
    lines[5] = lines[5][:30]
    (tmp_path / "a.extxyz").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"frame 0: cannot be read: atom 3 has 3 columns, those "):
        run([tmp_path / "a.extxyz"], tmp_path / "out")


def test_a_wrong_number_of_atoms_is_not_waited_for(tmp_path):
    (tmp_path / "a.xyz").write_text("20261126224400\n\nCu 0 0 0\n")
    with pytest.raises(DataError, match="ends after 1 of its 20,261,126,224,400 atoms"):
        run([tmp_path / "a.xyz"], tmp_path / "out")


@pytest.mark.parametrize("name", ["a.extxyz", "a.xyz.gz"])
def test_a_file_without_frames_is_not_passed_over(whole, tmp_path, name):
    (tmp_path / "good.traj").write_bytes((whole / "a.traj").read_bytes())
    blank = b"\n\n" if name == "a.extxyz" else gzip.compress(b"")
    (tmp_path / name).write_bytes(blank)
    with pytest.raises(DataError, match=rf"{name}: cannot be read: there are no frames in it"):
        run([tmp_path], tmp_path / "out")
    entry = run([tmp_path], tmp_path / "out", skip_bad=True)
    assert [Path(b["file"]).name for b in entry["dropped"]["bad"]] == [name]


def test_compressed_data_that_are_damaged_in_the_middle_are_one_sentence(whole, tmp_path):
    packed = bytearray(gzip.compress((whole / "a.extxyz").read_bytes()))
    packed[40:60] = b"\xff" * 20
    (tmp_path / "a.extxyz.gz").write_bytes(packed)
    with pytest.raises(DataError, match="its compressed data are incomplete or damaged"):
        run([tmp_path / "a.extxyz.gz"], tmp_path / "out")


def test_one_fault_of_all_frames_is_one_line(whole, tmp_path):
    with pytest.raises(DataError) as refused:
        run([whole / "a.traj"], tmp_path / "out", labels=LabelOptions(energy_key="E"))
    said = str(refused.value)
    assert re.search(r"a\.traj: 6 frames, the first is frame 0: no energy under 'E'", said)
    assert said.endswith("leave them out with --skip-bad")
    assert "\n" not in said
