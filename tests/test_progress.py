"""The progress of long tasks, where stderr is a terminal and where it is a file."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import sys
import termios

from fairchem_kit import progress
from ndem_ocp.cli import main


def test_a_short_task_prints_nothing_into_a_file(capsys):
    assert list(progress.bar(range(3), desc="reading", unit="file")) == [0, 1, 2]
    with progress.bar(total=3, desc="reading") as shown:
        shown.update(3)
    assert capsys.readouterr().err == ""


def test_a_long_task_prints_a_line_now_and_then_into_a_file(capsys, monkeypatch):
    times = iter(range(0, 1000, 40))  # s
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    assert len(list(progress.bar(range(5), desc="checking", unit="batch"))) == 5
    assert capsys.readouterr().err.splitlines() == [
        "checking: 2 of 5 batches, 1 min, about 2 min left",
        "checking: 4 of 5 batches, 3 min, about 1 min left",
    ]
    with progress.bar(desc="reading", unit="molecule") as shown:
        shown.update(1000)
        shown.update(1000)
    assert capsys.readouterr().err == "reading: 2,000 molecules, 1 min\n"


def test_no_progress_is_nothing_at_all(capsys, monkeypatch):
    times = iter(range(0, 1000, 100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    assert list(progress.bar([1, 2], desc="x", show=False)) == [1, 2]
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with os.fdopen(child, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert list(progress.bar(range(3), desc="reading")) == [0, 1, 2]
        terminal.flush()
        shown = os.read(parent, 10_000).decode()
    os.close(parent)
    assert "\rreading: 100%" in shown


def test_commands_put_no_carriage_returns_into_a_log(demo_data, capsys):
    assert main(["data", "check", str(demo_data / "val_id")]) in (0, 1)
    assert "\r" not in capsys.readouterr().err
