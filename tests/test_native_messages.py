"""What libraries write to stderr from C, in the middle of our own lines."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest

from fairchem_kit.native_messages import without_lines


def test_unwanted_lines_are_dropped_and_all_others_written(capfd):
    with without_lines(lambda line: line.startswith("Warp")):
        os.write(2, b"Warp CUDA warning: none here\nanother\xff library\n")
    os.write(2, b"Warp later\n")
    assert capfd.readouterr().err == "another\ufffd library\nWarp later\n"


def test_nothing_is_lost_with_an_error(capfd):
    with contextlib.suppress(ImportError), without_lines(lambda line: False):
        os.write(2, b"the reason\n")
        raise ImportError
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "the reason\nafter\n"


def test_a_closed_stderr_is_no_error():
    code = """
import os
from fairchem_kit.native_messages import without_lines
os.close(2)
with without_lines(lambda line: True):
    print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_importing_torchmd_net_prints_nothing():
    pytest.importorskip("torchmdnet", reason="torchmd-net is not installed (extra: molecules)")
    code = """
from ndem_ocp.models.torchmd import require_torchmd
require_torchmd("models.torchmd_et")
import warp
warp.init()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
