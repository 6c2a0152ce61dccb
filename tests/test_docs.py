"""Pages of docs/ that are made from the source, and what the documentation's site needs."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs" / "_site"))

import generate  # noqa: E402
import settings_page  # noqa: E402

import ndem_ocp  # noqa: E402

CLASS = "class NDeMSettings:\n"


@pytest.mark.parametrize("name", generate.PAGES)
def test_a_generated_page_is_what_the_source_says(name):
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert generate.PAGES[name]() == page, "run `make docs-pages`"


def test_the_reference_has_every_public_name():
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "docs/reference").glob("*.md"))
    for name in ndem_ocp.__all__:
        assert f".{name}\n" in pages or name == "__version__", name


def test_a_setting_is_its_field_and_the_comment_above_it():
    source = CLASS + (
        "    # One. Its\n    # second line.\n    one: float = 0.5\n"
        "    # --- more, Eq. 1 ---\n    # Two.\n    two: str | None = None\n"
        "    @property\n    def name(self):  # no setting\n        return 1\n"
    )
    one, two = settings_page.settings_of(source)
    assert (one.name, one.type, one.default, one.text) == (
        "one", "float", 0.5, "One. Its second line.",
    )  # fmt: skip
    assert (two.name, two.default, two.section) == ("two", None, "More, Eq. 1")


def test_a_setting_without_a_comment_is_refused():
    with pytest.raises(ValueError, match="two has no comment"):
        settings_page.settings_of(CLASS + "    # One.\n    one: int = 1\n    two: int = 2\n")
