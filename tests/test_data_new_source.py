"""The source of data that docs/developers.md adds, in a copy of the packages; and readers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import units

from conftest import ROOT
from fairchem_kit.data.errors import FrameError
from fairchem_kit.data.frame_files import FrameReader, Source, iter_frames
from fairchem_kit.data.units import IN_EV
from test_data_support import make_frames, records

KCAL = units.kcal / units.mol
FILE = "fairchem_kit/data/sources/atom_table.py"


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    """A folder with both packages and the file of the documentation, and nothing else changed."""
    folder = tmp_path_factory.mktemp("packages")
    for name in ("fairchem_kit", "ndem_ocp"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    page = (ROOT / "docs" / "developers.md").read_text(encoding="utf-8")
    start = page.index(f"--- /dev/null\n+++ b/{FILE}\n")
    lines = page[start : page.index("\n```", start)].splitlines()[2:]
    assert all(line.startswith("+") for line in lines)
    (folder / FILE).write_text("".join(f"{line[1:]}\n" for line in lines))
    return folder


def ndem(packages: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ndem_ocp.cli", *words],
        env={**os.environ, "PYTHONPATH": str(packages)},
        cwd=packages,
        capture_output=True,
        text=True,
    )


def table(path: Path, frames: int, spoiled: int = -1) -> Path:
    """Frames of a water molecule; one number in frame ``spoiled`` is none."""
    lines = ["frame;energy;element;x;y;z;fx;fy;fz"]
    for frame in range(frames):
        for element, x in (("O", 0.0), ("H", 0.96), ("H", -0.96)):
            y = "no number" if frame == spoiled else 0.01 * frame
            lines.append(f"{frame};{-100 - frame};{element};{x};{y};0;{frame};0;1")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_source_that_the_documentation_adds_converts(packages, tmp_path):
    file = table(tmp_path / "water.csv", 6)
    out = tmp_path / "out"
    words = ["--separator", ";", "--split-by", "frame", "--val-fraction", "0.2", "--workers", "2"]
    done = ndem(packages, "data", "atom-table", str(file), "--out", str(out), *words)
    assert done.returncode == 0, done.stderr
    assert "5 frames of 1 system, 15 atoms" in done.stdout
    for fields in [*records(out / "train"), *records(out / "val")]:
        frame = fields["fid"]
        assert fields["y"] == pytest.approx((-100 - frame) * KCAL)
        np.testing.assert_allclose(fields["pos"][:, 1], 0.01 * frame)
        np.testing.assert_allclose(fields["force"], [[frame * KCAL, 0, KCAL]] * 3, rtol=1e-6)
        assert fields["atomic_numbers"].tolist() == [8, 1, 1]
    (entry,) = json.loads((out / "dataset.json").read_text())["conversions"]
    assert entry["reader"] == {"separator": ";"}
    assert entry["sources"] == [{"file": str(file), "frames_read": 6}]


def test_its_bad_files_are_one_sentence_and_nothing_is_left(packages, tmp_path):
    file = table(tmp_path / "water.csv", 6, spoiled=3)
    words = ["data", "atom-table", str(file), "--separator", ";", "--out", str(tmp_path / "out")]
    done = ndem(packages, *words)
    assert done.returncode == 2
    assert "water.csv: frame 3: cannot be read: ValueError: could not convert" in done.stderr
    assert "the rest of the file is not read" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["water.csv"]


class Letters(FrameReader):
    """One frame per letter of a file: ``x`` is unreadable, ``!`` ends the reading."""

    suffixes = (".txt",)

    def frames(self, path):
        for letter in Path(path).read_text():
            if letter == "!":
                raise KeyError("energy")
            yield FrameError("an x") if letter == "x" else letter


def test_a_reader_of_whole_files_gives_frames_by_number(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abxc!d")
    source = Source(str(path), "a", Letters())
    assert [(n, str(f)) for n, f in iter_frames(source)] == [
        (0, "a"), (1, "b"), (2, "an x"), (3, "c"),
        (4, "KeyError: 'energy'; the rest of the file is not read"),
    ]  # fmt: skip
    assert list(iter_frames(source, [1, 3])) == [(1, "b"), (3, "c")]
    assert list(iter_frames(source, [])) == []
    ((number, error),) = iter_frames(Source(str(tmp_path / "b.txt"), "b", Letters()))
    assert (number, type(error)) == (0, FrameError)
    assert "No such file" in str(error)


def test_units_are_those_of_ase():
    assert {"eV": 1.0, "kcal/mol": KCAL, "kJ/mol": units.kJ / units.mol} == IN_EV


def test_a_file_that_changes_between_the_two_readings_is_named(tmp_path, monkeypatch):
    from ase.io import write

    from fairchem_kit.data import convert
    from fairchem_kit.data.errors import DataError
    from test_data_support import run

    frames = make_frames(count=3)
    write(tmp_path / "a.traj", frames)
    plain = convert.make_plan

    def changing(*args):
        frames[2].calc = None
        write(tmp_path / "a.traj", frames)
        return plain(*args)

    monkeypatch.setattr(convert, "make_plan", changing)
    with pytest.raises(DataError, match=r"a\.traj changed while it was converted"):
        run([tmp_path / "a.traj"], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.traj"]
