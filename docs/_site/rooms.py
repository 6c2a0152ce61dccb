"""The map of the code: its rooms, what each imports, and whether any two import each other.

    python docs/_site/rooms.py

A room is a folder of ndem_ocp or of fairchem_kit, or a file of theirs. Imports within functions
count; those under TYPE_CHECKING, which never run, do not. Reads the source, and imports nothing of
it.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: What knows NDeM, and what is useful to somebody who trains plainly and never imports it.
PACKAGES = (IDEA, KIT) = ("ndem_ocp", "fairchem_kit")

#: Rooms of ndem_ocp that are programs, which put both together.
PROGRAMS = ("bench", "cli", "commands", "demo", "doctor", "fit", "sweep")


class Code:
    """The files of both packages and their imports of each other.

    Attributes:
        files: {module: path}. arrows: {module: modules that it imports}.
    """

    def __init__(self, root: Path = ROOT) -> None:
        paths = (path for name in PACKAGES for path in sorted((root / name).rglob("*.py")))
        self.files = {_module(path, root): path for path in paths}
        self.arrows = {
            module: set(self._imports(module, path)) for module, path in self.files.items()
        }

    def _imports(self, module: str, path: Path) -> Iterator[str]:
        package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        for node in _running(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (a.name for a in node.names if a.name in self.files)
            if not isinstance(node, ast.ImportFrom):
                continue
            within = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*within, *filter(None, [node.module])])
            for alias in node.names:
                found = f"{source}.{alias.name}"
                found = found if found in self.files else source
                if found in self.files and found != module:
                    yield found

    @property
    def rooms(self) -> list[str]:
        """The names of all rooms."""
        return sorted({room(module) for module in self.files} - {""})

    def between(self, one: str, other: str) -> list[tuple[str, str]]:
        """The imports of room ``other`` in room ``one``, as pairs of modules."""
        return sorted(
            (module, found)
            for module, arrows in self.arrows.items()
            for found in arrows
            if room(module) == one and room(found) == other
        )

    def of_rooms(self) -> dict[str, set[str]]:
        """{room: rooms that it imports}."""
        found: dict[str, set[str]] = {name: set() for name in self.rooms}
        for module, arrows in self.arrows.items():
            if room(module):
                found[room(module)] |= {room(each) for each in arrows} - {room(module), ""}
        return found

    def lines(self) -> dict[str, int]:
        """{room: lines of code, comments and blank lines included}."""
        count: dict[str, int] = defaultdict(int)
        for module, path in self.files.items():
            count[room(module)] += len(path.read_text(encoding="utf-8").splitlines())
        return dict(count)


def room(module: str) -> str:
    """The room of a module, ``package.folder``; empty for a package itself."""
    return ".".join(module.split(".")[:2]) if "." in module else ""


def side(name: str) -> str:
    """ "NDeM", "program" or "kit", of a room."""
    package, _, own = name.partition(".")
    return "kit" if package == KIT else "program" if own in PROGRAMS else "NDeM"


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Groups of names each of which leads back to itself."""
    reach = {name: _reached(arrows, name) for name in arrows}
    groups = {
        tuple(sorted({name} | {o for o in reach[name] if name in reach.get(o, ())}))
        for name in arrows
        if name in reach[name]
    }
    return [list(group) for group in sorted(groups)]


def order(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The names in storeys: each imports from storeys below it alone.

    Raises:
        ValueError: there is a circle.
    """
    left, storeys, done = dict(arrows), [], set()
    while left:
        storey = sorted(name for name, below in left.items() if below <= done)
        if not storey:
            raise ValueError(f"these import each other: {circles(left)}")
        storeys.append(storey)
        done |= set(storey)
        left = {name: below for name, below in left.items() if name not in done}
    return storeys


def _reached(arrows: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(arrows.get(start, ()))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += arrows.get(name, ())
    return found


def _module(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from _running(child)


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> int:
    code = Code()
    arrows, lines = code.of_rooms(), code.lines()
    print(_row(["layer", "room", "side", "lines", "imports"]))
    print(_row(["---"] * 5))
    for number, storey in enumerate(order(arrows)):
        for name in storey:
            below = ", ".join(sorted(arrows[name]))
            print(_row([number, name, side(name), lines[name], below]))
    count: dict[str, int] = defaultdict(int)
    for name in code.rooms:
        count[side(name)] += lines[name]
    print(f"\nlines: {', '.join(f'{name} {n:,}' for name, n in count.items())}; arrows between "
          f"rooms: {sum(map(len, arrows.values()))}; circles among files: "
          f"{len(circles(code.arrows))}, among rooms: {len(circles(arrows))}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
