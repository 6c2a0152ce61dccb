"""Docstrings as the reference shows them: one argument a line.

In the source short arguments share a line (``path: the file. workers: processes.``). Google's
style, which griffe reads, has one a line.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_SECTION = re.compile(r"^( *)(?:Args|Attributes):\n((?:\1 +\S.*\n?|\n(?=\1 ))+)", re.MULTILINE)


def one_a_line(text: str, names: set[str]) -> str:
    """``text`` with every argument of ``names`` at the start of a line of its section."""

    def separated(section: re.Match[str]) -> str:
        indent = section[1] + "    "
        lines = re.sub(
            r"(?<=[.;]) (\w+)(?=: )",
            lambda m: f"\n{indent}{m[1]}" if m[1] in names else m[0],
            section[2],
        )
        return section[0].replace(section[2], lines)

    return _SECTION.sub(separated, text)


class OneArgumentALine(griffe.Extension):
    """Rewrites the docstrings of functions (by parameter) and of classes (by field)."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None:
            return
        names = set(obj.members)
        if isinstance(obj, griffe.Function):
            names = {parameter.name for parameter in obj.parameters}
        elif isinstance(obj, griffe.Class) and "__init__" in obj.members:
            init = obj.members["__init__"]
            if isinstance(init, griffe.Function):
                names |= {parameter.name for parameter in init.parameters}
        obj.docstring.value = one_a_line(obj.docstring.value, names)
