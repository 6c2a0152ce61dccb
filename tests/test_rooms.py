"""What may import what: docs/_site/rooms.py has the map."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "docs" / "_site"))
import rooms
from rooms import KIT, Code, circles, order, side


@pytest.fixture(scope="module")
def code() -> Code:
    return Code()


def test_no_files_import_each_other(code):
    assert circles(code.arrows) == []


def test_no_rooms_import_each_other(code):
    assert circles(code.of_rooms()) == []
    assert sum(map(len, order(code.of_rooms()))) == len(code.rooms)


def test_the_kit_does_not_know_ndem(code):
    for module, path in code.files.items():
        if module.split(".")[0] == KIT:
            assert not re.search(r"^\s*(import|from) ndem_ocp\b", path.read_text(), re.M), module


def test_what_knows_ndem_does_not_import_programs(code):
    for name, below in code.of_rooms().items():
        if side(name) == "NDeM":
            upward = {other for other in below if side(other) == "program"}
            assert not upward, [code.between(name, other) for other in upward]


def test_the_kit_registers_ndem_without_importing_it():
    code = """
import sys
from fairchem_kit import plugins
assert "ndem_ocp" not in sys.modules
plugins.register()
from fairchem.core.common.registry import registry
assert registry.get_trainer_class("ndem").__module__.startswith("ndem_ocp.")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_method_imports_torch_and_the_error_class_alone(code):
    assert code.of_rooms()["ndem_ocp.method"] == {"fairchem_kit.errors"}


def test_quarters_of_sigma_are_the_same_in_the_log_and_in_reports():
    from fairchem_kit.report import metrics
    from ndem_ocp.method import diagnostics

    assert metrics.QUARTERS == diagnostics.QUARTERS


def test_a_circle_is_found(tmp_path):
    for name, text in {
        "a/__init__.py": "",
        "a/one.py": "def f():\n    from ndem_ocp.b import two\n",
        "b/__init__.py": "",
        "b/two.py": "from ..a.one import f\n",
        "c.py": "if TYPE_CHECKING:\n    from ndem_ocp.a import one\n",
        "__init__.py": "",
    }.items():
        path = tmp_path / "ndem_ocp" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    code = rooms.Code(tmp_path)
    assert circles(code.arrows) == [["ndem_ocp.a.one", "ndem_ocp.b.two"]]
    assert circles(code.of_rooms()) == [["ndem_ocp.a", "ndem_ocp.b"]]
    with pytest.raises(ValueError, match="import each other"):
        order(code.of_rooms())
