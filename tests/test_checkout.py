"""What of ndem_ocp.bench needs a checkout says so outside one."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from conftest import ROOT
from ndem_ocp.bench.checkout import in_checkout


def test_outside_a_checkout_one_sentence_says_so(tmp_path, capsys):
    assert in_checkout(lambda: pytest.fail("it ran"), tmp_path) == 2
    said = capsys.readouterr().err
    assert str(tmp_path) in said
    assert "git clone" in said


def test_inside_the_status_is_that_of_the_program():
    assert [in_checkout(lambda n=n: n) for n in (None, 0, 1)] == [0, 0, 1]


def test_an_installed_copy_writes_nothing(tmp_path):
    """As pip leaves the packages: without the folders of the repository."""
    for name in ("ndem_ocp", "fairchem_kit"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for module in ("pages.write", "gpu.check"):
        command = [sys.executable, "-m", f"ndem_ocp.bench.{module}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2, done
        assert str(tmp_path) in done.stderr, done
        assert len(done.stderr.splitlines()) == 1, done


def test_provenance_names_a_module_as_it_was_started(tmp_path):
    (tmp_path / "asks.py").write_text(
        "from pathlib import Path\nfrom fairchem_kit.provenance import provenance\n"
        "print(provenance(Path('.'))['command'])\n"
    )
    for words in (["asks.py", "--x", "1"], ["-m", "asks", "--x", "1"]):
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == " ".join(["python", *words])
