"""Sources are read, never written; other files are refused by name; compressed ones work."""

from __future__ import annotations

import bz2
import gzip
import lzma
import sqlite3
from pathlib import Path

import pytest
from ase.db import connect
from ase.io import write

from fairchem_kit.data.errors import DataError
from fairchem_kit.data.sources.ase import expand_sources
from test_data_support import make_frames, records, run


def state_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of the last change of every file, and of the folder itself."""
    found = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}
    return {**found, ".": (b"", folder.stat().st_mtime_ns)}


def foreign(path: Path, wal: bool = False) -> None:
    connection = sqlite3.connect(path)
    if wal:
        connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE bookmarks (name)")
    connection.commit()
    connection.close()


def make_sources(folder: Path) -> None:
    frames = make_frames()
    folder.mkdir()
    write(folder / "a.traj", frames)
    write(folder / "b.extxyz", frames)
    write(folder / "b2.xyz", frames, format="extxyz")
    for name in ("c.db", "c2.json"):
        with connect(str(folder / name)) as database:
            for frame in frames:
                database.write(frame)
    connection = sqlite3.connect(folder / "c.db")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


def test_sources_keep_their_bytes_and_times_and_get_no_neighbours(tmp_path):
    folder = tmp_path / "sources"
    make_sources(folder)
    foreign(folder / "d.db")
    foreign(folder / "e.db", wal=True)
    (folder / "f.db").touch()
    (folder / "g.db").write_bytes(b"GIF89a")
    before = state_of(folder)
    entry = run([folder, folder / "c2.json"], tmp_path / "out", skip_bad=True)
    assert state_of(folder) == before
    assert entry["splits"]["train"]["frames"] == 5 * 5
    bad = {Path(b["file"]).name: b["reason"] for b in entry["dropped"]["bad"]}
    assert sorted(bad) == ["d.db", "e.db", "f.db", "g.db"]
    assert "of another program" in bad["d.db"]
    assert "bookmarks" in bad["d.db"]
    assert "of another program" in bad["e.db"]
    assert "an empty file" in bad["f.db"]
    assert "not an SQLite file" in bad["g.db"]


def test_a_database_that_is_not_from_ase_stops_the_conversion_by_name(tmp_path):
    folder = tmp_path / "sources"
    folder.mkdir()
    foreign(folder / "d.db")
    before = state_of(folder)
    with pytest.raises(DataError, match=r"(?s)d\.db: cannot be read: an SQLite file .*--skip-bad"):
        run([folder / "d.db"], tmp_path / "out")
    assert state_of(folder) == before


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.traj", b"", r"a\.traj: cannot be read: an empty file, not an ASE trajectory"),
        ("a.traj", b"hello", r"a\.traj: cannot be read: it starts with b'hello', not an ASE traj"),
        ("a.xyz", b"hello\n", r"a\.xyz: frame 0: cannot be read: its first line should be"),
        ("a.npz", b"", r"a\.npz: files of this kind .* `ndem data md17`"),
        ("none/", None, r"nothing in this folder ends in \.traj"),
        ("*.db", None, r"\*\.db: no file matches this pattern"),
        ("a.xyz", None, r"a\.xyz: no such file or directory$"),
    ],
)
def test_files_that_are_of_no_use_are_named_with_the_reason(tmp_path, name, content, words):
    source = tmp_path / name
    if content is not None:
        source.write_bytes(content)
    elif name.endswith("/"):
        source.mkdir()
    with pytest.raises(DataError, match=words) as refused:
        run([source], tmp_path / "out")
    assert "Error" not in str(refused.value)


def test_a_database_in_a_folder_without_write_permission(tmp_path):
    folder = tmp_path / "sources"
    make_sources(folder)
    for path in (*folder.iterdir(), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        run([folder / "c.db"], tmp_path / "out")
    finally:
        folder.chmod(0o755)
    assert len(records(tmp_path / "out/train")) == 5


def test_a_database_that_is_being_written_is_named(tmp_path):
    folder = tmp_path / "sources"
    make_sources(folder)
    writer = sqlite3.connect(folder / "c.db")
    writer.execute("UPDATE systems SET energy = energy + 1")
    writer.commit()
    before = state_of(folder)
    with pytest.raises(DataError, match="another program has not finished writing"):
        run([folder / "c.db"], tmp_path / "out")
    assert state_of(folder) == before
    writer.close()
    run([folder / "c.db"], tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "packed", "pack"),
    [
        ("a.traj", "a.traj.gz", gzip.compress),
        ("b.extxyz", "b.extxyz.gz", gzip.compress),
        ("b2.xyz", "b2.xyz.xz", lzma.compress),
        ("c.db", "c.db.bz2", bz2.compress),
        ("c2.json", "c2.json.xz", lzma.compress),
    ],
)
def test_compressed_sources(tmp_path, name, packed, pack):
    folder = tmp_path / "sources"
    make_sources(folder)
    (tmp_path / packed).write_bytes(pack((folder / name).read_bytes()))
    run([folder / name], tmp_path / "plain", frames_per_shard=2)
    run([tmp_path / packed], tmp_path / "packed", frames_per_shard=2)
    plain, unpacked = (records(tmp_path / out / "train") for out in ("plain", "packed"))
    assert [r["y"] for r in plain] == [r["y"] for r in unpacked]
    assert [r["fid"] for r in unpacked] == list(range(5))
    (folder / packed).write_bytes(b"")
    with pytest.raises(DataError, match="both among the sources"):
        expand_sources([str(folder), str(folder / name), str(folder / packed)])


def test_a_damaged_compressed_file_is_named(tmp_path):
    write(tmp_path / "a.traj", make_frames(count=20))
    whole = gzip.compress((tmp_path / "a.traj").read_bytes())
    write(tmp_path / "b.extxyz", make_frames(count=20))
    text = gzip.compress((tmp_path / "b.extxyz").read_bytes())
    (tmp_path / "c.traj.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "d.extxyz.gz").write_bytes(text[: len(text) // 2])
    (tmp_path / "e.xyz.xz").write_bytes(b"no xz")
    for name in ("c.traj.gz", "d.extxyz.gz", "e.xyz.xz"):
        with pytest.raises(DataError, match=rf"{name}: cannot be read"):
            run([tmp_path / name], tmp_path / "out")


def test_reading_xyz_continues_after_a_bad_frame_and_after_empty_lines(tmp_path):
    write(tmp_path / "a.extxyz", make_frames(count=4))
    lines = (tmp_path / "a.extxyz").read_text().splitlines()
    size = len(lines) // 4
    lines[size + 3] = lines[size + 3].replace("Cu", "Qq")
    lines.insert(3 * size, "")
    (tmp_path / "a.extxyz").write_text("\n".join(lines) + "\n")
    entry = run([tmp_path / "a.extxyz"], tmp_path / "out", skip_bad=True)
    assert [b["frame"] for b in entry["dropped"]["bad"]] == [1]
    assert [r["fid"] for r in records(tmp_path / "out/train")] == [0, 2, 3]

    (tmp_path / "b.extxyz").write_text("\n".join([*lines, "no number", *lines]))
    entry = run([tmp_path / "b.extxyz"], tmp_path / "b", skip_bad=True)
    assert "the rest of the file is not read" in entry["dropped"]["bad"][1]["reason"]
    (tmp_path / "c.extxyz").write_text("\n".join(lines[:-2]))
    entry = run([tmp_path / "c.extxyz"], tmp_path / "c", skip_bad=True)
    assert f"ends after {size - 4} of its {size - 2} atoms" in entry["dropped"]["bad"][1]["reason"]
