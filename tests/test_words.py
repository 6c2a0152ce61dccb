"""Numbers in sentences: "1 frame", never "1 frames"."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fairchem_kit
import ndem_ocp
from fairchem_kit.words import counted

PACKAGES = [Path(package.__file__).parent for package in (ndem_ocp, fairchem_kit)]
#: what messages count
THINGS = (
    "arms|atoms|batches|columns|components|compositions|displacements|edges|elements|entries|"
    "epochs|errors|evaluations|files|frames|GPUs|ids|indices|jobs|keys|lines|molecules|pairs|"
    "parameters|problems|processes|ranks|records|relaxations|rows|runs|seeds|shards|splits|steps|"
    "structures|systems|tasks|tensors|threads|validations|values|views|weights|workers"
)
ADJECTIVES = "whole|usable|unusable|new|duplicate|training|second|validation"
COUNTED = re.compile(rf" (?:(?:{ADJECTIVES}) )?(?:{THINGS})\b(?! ?/)")
#: write the tables of the documentation from results whose numbers are known
GENERATORS = {"pages", "experiments", "gpu"}


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("frame",), "0 frames"),
        (1, ("frame",), "1 frame"),
        (12000, ("training frame",), "12,000 training frames"),
        (1, ("index", "indices"), "1 index"),
        (2, ("index", "indices"), "2 indices"),
        (None, ("frame",), "None frames"),
    ],
)
def test_one_and_many(number, words, text):
    assert counted(number, *words) == text


def plurals(path: Path) -> Iterator[str]:
    """Places in a file where a number comes before a plural, or a word ends in ``(s)``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.JoinedStr):
            continue
        for before, after in zip([None, *node.values], node.values, strict=False):
            if not isinstance(after, ast.Constant):
                continue
            number = isinstance(before, ast.FormattedValue) and not known(before)
            if (number and COUNTED.match(after.value)) or re.search(r"[a-z]\(s\)", after.value):
                yield f"{path.name}:{node.lineno}: {ast.unparse(node)}"


def known(number: ast.FormattedValue) -> bool:
    """Whether it is a constant, which is not 1, a text, or a number with decimals."""
    node, form = number.value, number.format_spec
    decimals = form is not None and ast.unparse(form) != "f','"
    return decimals or (isinstance(node, ast.Name) and node.id.strip("_").isupper())


def test_numbers_before_plurals_are_counted():
    paths = [path for package in PACKAGES for path in sorted(package.rglob("*.py"))]
    found = [p for path in paths if not GENERATORS & {*path.parts} for p in plurals(path)]
    assert not found, "\n".join(found)
