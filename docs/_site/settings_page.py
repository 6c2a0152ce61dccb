"""docs/settings_reference.md from the source of ndem_ocp/method/settings.py, which is not imported.

A setting is a field of ``NDeMSettings``: its annotation, its default, and the comment above it.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEAD = """\
# Settings of `task.ndem`

<!-- Written by `make docs-pages` from ndem_ocp/method/settings.py: change the comments there. -->

Every key of the section `task.ndem`, as the NDeM trainer reads it. A key that is left out has its
default. "paper" marks a default that the NDeM paper states; lengths are in Å. The files of
`configs/oc20` set some keys to other values and say why. [Choosing settings](settings.md) has what
is known about each, [the method](method.md) the equations, and [configurations](configs.md)
everything outside this section.
"""
HOST_HEAD = """
## Keys of the trainer

These two are in the same section, and are read by the trainer and not by the method.
"""
TYPES = {
    "str": "text",
    "bool": "True or False",
    "float": "number",
    "float | str": "number or text",
    "float | None": "number or null",
    "str | None": "text or null",
    "Schedule": "number or [schedule](#schedules)",
    "Schedule | None": "number, [schedule](#schedules) or null",
}
SCHEDULES = """
## Schedules

A setting that takes a schedule may change during training. The schedule is a mapping from fractions
of the training (0 to 1) to values, with straight lines between them: `share: {0: 0.3, 0.5: 0.6}`
rises from 0.3 to 0.6 over the first half and then stays at 0.6.
"""


@dataclass(frozen=True)
class Setting:
    """One key: what its type and default are, which values it takes, and its comment."""

    name: str
    type: str
    default: Any
    section: str
    text: str


def settings_of(source: str) -> list[Setting]:
    """The fields of ``NDeMSettings``, in their order.

    Raises:
        ValueError: for a field without a comment.
    """
    lines = source.splitlines()
    found, section, above = [], "The task", 0
    for node in _class(source).body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            above = node.end_lineno or 0
            continue
        comments = []
        for line in (text.strip() for text in lines[above : node.lineno - 1]):
            if line.startswith("# ---"):
                section = line.strip("# -").strip()
                section = (section[0].upper() + section[1:]).replace("*", "\\*")
            elif line.startswith("#"):
                comments.append(line[1:].strip())
        if not comments:
            raise ValueError(f"{node.target.id} has no comment above it")
        above = node.end_lineno or 0
        default = ast.literal_eval(node.value) if node.value else None
        found.append(
            Setting(
                node.target.id, ast.unparse(node.annotation), default, section, " ".join(comments)
            )
        )
    return found


def constant(source: str, name: str) -> Any:
    """The value of a module's literal ``name = ...``."""
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return ast.literal_eval(node.value)
    raise ValueError(f"no {name} in the source")


def own_settings(root: Path) -> dict[str, tuple[str, ...]]:
    """{objective: its own settings}, from the registered classes, in the order of their import."""
    method = root / "ndem_ocp" / "method"
    found = {}
    for line in (method / "__init__.py").read_text(encoding="utf-8").splitlines():
        module = re.match(r"from ndem_ocp\.method\.(\w+) import", line)
        source = (method / f"{module[1]}.py").read_text(encoding="utf-8") if module else ""
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and "register" in map(
                ast.unparse, node.decorator_list
            ):
                values = {
                    part.targets[0].id: part.value
                    for part in node.body
                    if isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name)
                }
                name = ast.literal_eval(values["name"])
                found[name] = ast.literal_eval(values["own_settings"])
    return found


def settings_page(root: Path) -> str:
    """The page, for the sources below ``root``."""
    source = (root / "ndem_ocp/method/settings.py").read_text(encoding="utf-8")
    settings = settings_of(source)
    own = own_settings(root)
    choices = {"objective": tuple(own), **constant(source, "CHOICES")}
    ranges = constant(source, "RANGES")
    out = [HEAD, "| setting | default | meaning |", "| --- | --- | --- |"]
    for setting in settings:
        summary = re.split(r"(?<!Eq)\.(?: |$)", setting.text)[0]
        text = _linked(summary).replace("|", "\\|")
        out.append(f"| [`{setting.name}`](#{setting.name}) | `{_yaml(setting.default)}` | {text} |")
    section = ""
    for setting in settings:
        if setting.section != section:
            section = setting.section
            out += ["", f"## {section}"]
        facts = [f"Default: `{_yaml(setting.default)}`"]
        if setting.name in choices:
            facts.append("one of " + ", ".join(f"`{choice}`" for choice in choices[setting.name]))
        else:
            facts.append(TYPES[setting.type])
        if setting.name in ranges:
            facts.append(ranges[setting.name].replace("Angstrom", "Å"))
        objectives = [f"`{name}`" for name, settings in own.items() if setting.name in settings]
        if objectives:
            facts.append(f"only with `objective` {' or '.join(objectives)}")
        text = _linked(setting.text)
        out += ["", f"### `{setting.name}`", "", "; ".join(facts) + ".", "", text]
    host = (root / "ndem_ocp/trainer/config.py").read_text(encoding="utf-8")
    out += [SCHEDULES.rstrip(), HOST_HEAD.rstrip()]
    for name, text in constant(host, "HOST_KEYS").items():
        out += ["", f"### `{name}`", "", "Default: `null`.", "", _linked(text)]
    return "\n".join(out) + "\n"


def _class(source: str) -> ast.ClassDef:
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == "NDeMSettings":
            return node
    raise ValueError("no class NDeMSettings in the source")


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value)


def _linked(text: str) -> str:
    """A comment with links to the pages of docs/ that it names."""
    return re.sub(r"\bdocs/(\w+\.md)", r"[\1](\1)", text)
