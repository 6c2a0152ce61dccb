"""docs/tutorial.md stays true: its blocks are run in order, as a user types them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from fairchem_kit.history.logger import find_history, read_history
from ndem_ocp.second_views.sidecar import read_meta

PAGE = ROOT / "docs/tutorial.md"
COMMANDS = {"bash": ["bash", "-euo", "pipefail"], "python": [sys.executable, "-"]}
TIMEOUT = 900  # seconds for one block; a quiet machine needs 30 for the longest


def blocks() -> list[tuple[str, str]]:
    """(language, text) of the page's fenced blocks, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert all(language for language, _ in found), "a block without a language"
    return found


def run(language: str, text: str, folder: Path) -> str:
    """Run one block in ``folder``, which stands for the root of a checkout."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        COMMANDS[language],
        input=text,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, f"{text}\n--- ended with {done.returncode}:\n{done.stdout[-4000:]}"
    return done.stdout


def test_the_pages_languages_are_known():
    assert {language for language, _ in blocks()} == {"bash", "python", "text"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tutorial(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    output = ""
    for language, text in blocks():
        if language in COMMANDS:
            output += run(language, text, tmp_path)
    made = tmp_path / "tutorial"
    assert "no problems found" in output
    for name in ("checkpoints/first/best_checkpoint.pt", "checkpoints/first/checkpoint.pt"):
        assert (made / name).is_file()
        assert name in PAGE.read_text()
    assert (made / "model.pt").is_file()
    assert (made / "relaxed.traj").is_file()
    # the numbers that the page asks to paste are those that ndem data check prints
    pasted, printed = normalizers(PAGE.read_text()), normalizers(output)
    assert pasted.keys() == printed.keys() == {"energy", "forces"}
    for name, numbers in pasted.items():
        assert numbers == pytest.approx(printed[name], abs=2e-3)
    # what the page says of the result
    zero = [float(value) for value in re.findall(r"zero-force MAE +([\d.]+)", output)][-1]
    validated = read_history(find_history(made / "logs/ndem_ocp.HistoryLogger/validated"), "val")
    assert validated[-1]["forces_mae"] < 0.85 * zero
    before, after = (
        float(re.search(rf"^{name}: ([\d.]+) eV", output, re.MULTILINE).group(1))
        for name in ("before", "after")
    )
    assert after < before
    # its potential is worth second views, as the page says
    errors = {
        name: [float(value) for value in re.search(rf"^{name} +(.*)$", output, re.M)[1].split()]
        for name in ("isotropic c", r"Distorted\(\)")
    }
    isotropic, distorted = errors.values()
    assert distorted[1] < 0.2 < 0.8 < isotropic[1]  # with the best scale
    assert 0.6 < distorted[4] < 0.9  # its forces themselves
    assert read_meta(made / "views.lmdb")["counts"]["records"] == 440
    record = json.loads(next(made.glob("logs/*/views/run.json")).read_text())
    assert record["config"]["task"]["ndem"]["second_views_of"]["name"] == "Distorted"
    evaluated = json.loads((made / "eval-views/metrics.json").read_text())
    assert 0 < evaluated["splits"]["val"]["metrics"]["force_change_error"] < 2


def normalizers(text: str) -> dict[str, list[float]]:
    """{output: [mean, stdev]} of the lines that a configuration has for them."""
    found = re.findall(r"(energy|forces): \{mean: ([-\d.]+), stdev: ([\d.]+)\}", text)
    return {name: [float(mean), float(stdev)] for name, mean, stdev in found}
