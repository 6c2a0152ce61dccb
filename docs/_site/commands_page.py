"""docs/commands.md: every command of ``ndem`` with its options, from its own argument parser."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

HEAD = """\
# Commands

<!-- Written by `make docs-pages` from the argument parser of `ndem`: change the help there. -->

Every command of `ndem` with its options, as `ndem COMMAND --help` prints them.
[Installation](install.md#how-commands-end) has the exit statuses that all of them share.
"""


def commands_page() -> str:
    """The page, from the installed package or the one that comes first on the path."""
    from ndem_ocp.commands.parser import build_parser
    from ndem_ocp.commands.table import COMMANDS

    helps = {f"ndem {command.name}": command.help for command in COMMANDS}
    parsers = list(_leaves(build_parser()))
    out = [HEAD, "| command | what it does |", "| --- | --- |"]
    out += [
        f"| [`{parser.prog}`](#{parser.prog.replace(' ', '-')}) | {_cell(helps[parser.prog])} |"
        for parser in parsers
    ]
    for parser in parsers:
        out += ["", f"## {parser.prog}", "", *_about(parser, helps[parser.prog])]
        rows = [_row(parser, action) for action in parser._actions if action.dest != "help"]
        if rows:
            out += ["", "| argument | meaning |", "| --- | --- |", *rows]
        if parser.epilog:
            out += ["", _prose(parser.epilog)]
    return "\n".join(out) + "\n"


def _leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _leaves(below)
            return
    yield parser


def _about(parser: argparse.ArgumentParser, help_: str) -> list[str]:
    """The description as Markdown: its paragraphs, and its indented examples as they are."""
    text = (parser.description or "").strip("\n")
    own = re.match(r"``ndem[\w -]*``: ", text)
    text = text[own.end() :] if own else text
    lines = []
    if not own and text != help_:
        lines += [_sentence(help_), ""]
    if parser.usage:
        lines += [f"    {parser.usage}", ""]
    for line in (_sentence(text) if own or text == help_ else text).splitlines():
        lines.append(line if line.startswith("    ") else _prose(line))
    return lines


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = parser._get_formatter()
    value = ""
    if action.nargs != 0:
        plain = action.metavar or action.choices is None
        name = formatter._get_default_metavar_for_optional(action)
        if not action.option_strings:
            name = formatter._get_default_metavar_for_positional(action)
        if plain:
            value = formatter._format_args(action, name)
        else:
            value = "{" + ",".join(map(str, action.choices or ())) + "}"
    names = ", ".join(action.option_strings)
    text = formatter._expand_help(action) if action.help else ""
    default = action.default
    hidden = default is None or isinstance(default, bool) or default in ([], argparse.SUPPRESS)
    if not hidden and "default" not in text:
        if isinstance(default, list | tuple):
            default = " ".join(map(str, default))
        text = f"{text} (default: {default})".strip()
    if action.option_strings and action.required:
        text = f"{text} (required)"
    usage = " ".join(filter(None, (names, value))).replace("|", "\\|")
    return f"| `{usage}` | {_cell(text)} |"


def _sentence(text: str) -> str:
    """Begin with a capital, unless the first word is a name, and end with a full stop."""
    first, _, rest = text.partition("\n")
    if first[1:2].islower() or first[1:2] == " ":
        first = first[0].upper() + first[1:]
    return "\n".join([first if first[-1] in ".:" else first + ".", *rest.splitlines()])


def _cell(text: str) -> str:
    return _prose(text).replace("|", "\\|").replace("\n", " ")


def _prose(text: str) -> str:
    """Text with options as code, and nothing read as emphasis or as HTML."""
    parts = re.split(r"(`+[^`]*`+)", text)
    for index, part in enumerate(parts):
        if index % 2:
            parts[index] = f"`{part.strip('`')}`"
        else:
            part = re.sub(r"(?<![\w`-])(--(?:[a-z][\w-]*(?:=\w+)?)?)(?![\w-])", r"`\1`", part)
            parts[index] = re.sub(r"([*<])", r"\\\1", part)
    return "".join(parts)
