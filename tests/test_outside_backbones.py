"""The contract on two backbones from outside the package, as docs/backbones.md shows them."""

from __future__ import annotations

import json
import re
import sys

import pytest

from conftest import ROOT
from ndem_ocp.bench.experiments import backbones

EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(EXAMPLES))  # where a user would put the files: on the PYTHONPATH

from test_single_class_adapter import TestSingleClassAdapter  # noqa: E402, F401
from test_toy_backbone import TestToyBackbone  # noqa: E402, F401

PAGE = ROOT / "docs/backbones.md"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_the_page_shows_the_file_as_it_is(path):
    shown = re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```\n", PAGE.read_text(), re.DOTALL)
    assert dict(shown)[f"examples/{path.name}"] == path.read_text()
    if path.name.startswith("test_"):
        assert len(path.read_text().splitlines()) <= 20


def test_no_check_of_the_results_failed():
    found = json.loads(backbones.RESULTS.read_text())
    assert all(
        check["outcome"] in ("passed", "skipped")
        for entry in found["backbones"].values()
        for check in entry["checks"].values()
    )
