"""Reading YAML files written by the user; an error says what is wrong in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fairchem_kit.errors import UserError
from fairchem_kit.files import existing_file


@contextlib.contextmanager
def yaml_errors(path: Path, error: type[UserError]) -> Iterator[None]:
    """Raise ``error`` for any problem in reading ``path`` or a file that it includes."""
    try:
        yield
    except UserError:
        raise
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        # the file with the error may be an included one; a string has no name
        here = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        named = mark is not None and not mark.name.startswith("<") and Path(mark.name).name
        file = f" in {mark.name}" if mark is not None and named and named != path.name else ""
        raise error(f"{path}{here}{file}: this is not valid YAML: {problem.problem}.") from problem
    except UnicodeDecodeError as problem:
        raise error(f"{path}: this is not UTF-8 text (byte {problem.start}).") from problem
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as problem:
        first = " ".join(str(problem).split())[:300].rstrip(".")
        raise error(f"{path}: this cannot be read as a configuration: {first}.") from problem


def read_mapping(path: str | Path, error: type[UserError], what: str) -> dict[str, Any]:
    """The mapping in a YAML file. Python objects in it are not loaded.

    Args:
        path: the file. error: the class to raise. what: kind of file, for the message.

    Raises:
        UserError: of class ``error``, if the file does not exist, is not YAML, or not a mapping.
    """
    path = existing_file(path, error)
    with yaml_errors(path, error):
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        kinds = {type(None): "empty", list: "a list", str: "a text"}
        kind = kinds.get(type(found), "a single value")
        raise error(f"{path}: {what} must be a mapping of keys to values, but this is {kind}.")
    return found
