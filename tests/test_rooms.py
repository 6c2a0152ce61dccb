"""What may import what: docs/_site/rooms.py has the map."""

from __future__ import annotations

import sys

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "docs" / "_site"))
import rooms
from rooms import IDEA, PROGRAMS, Code, circles, order


@pytest.fixture(scope="module")
def code() -> Code:
    return Code()


def test_no_files_import_each_other(code):
    assert circles(code.arrows) == []


def test_no_rooms_import_each_other(code):
    assert circles(code.of_rooms()) == []
    assert sum(map(len, order(code.of_rooms()))) == len(code.rooms)


def test_plain_rooms_do_not_know_ndem(code):
    for name, below in code.of_rooms().items():
        if name in (*IDEA, *PROGRAMS):
            continue
        upward = below & {*IDEA, *PROGRAMS}
        assert not upward, [code.between(name, other) for other in upward]


def test_the_method_imports_torch_and_the_error_class_alone(code):
    assert code.of_rooms()["method"] == {"errors"}


def test_quarters_of_sigma_are_the_same_in_the_log_and_in_reports():
    from ndem_ocp.method import diagnostics
    from ndem_ocp.report import metrics

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
    assert circles(code.of_rooms()) == [["a", "b"]]
    with pytest.raises(ValueError, match="import each other"):
        order(code.of_rooms())
