"""Which records a file contains, from its keys; ``length`` is compared, never trusted."""

from __future__ import annotations

from dataclasses import dataclass, field

from fairchem_kit.words import counted

from .errors import Refused
from .pages import LmdbFile
from .unpickle import load_integer

LENGTH = b"length"
_SHOWN = 5


@dataclass
class Keys:
    """The records of one file.

    Attributes:
        path: of the file. count: records are numbered 0 ... count - 1, missing ones included.
        problems: faults of keys and ``length``: kind (``length``, ``keys`` or ``missing``) and
            message of each.
        missing: numbers without a record, if the keys were read one by one.
    """

    path: str
    count: int
    problems: list[tuple[str, str]] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)


def map_keys(file: LmdbFile) -> Keys:
    """Number the records of a file.

    The number of keys in the file's header, ``length`` and the first and last expected key are
    compared; all keys are read only if these disagree. A missing key that a stray key makes up for
    in the count is found when the missing record is read.

    Raises:
        Refused: a damaged page.
    """
    stored, length, problem = file.get(LENGTH), None, None
    if stored is not None:
        try:
            length = load_integer(stored)
        except Refused as error:
            problem = f"its `length` cannot be read ({error.reason})"
    count = file.meta.entries - (stored is not None)
    if problem is None and length in (None, count) and _fits(file, count):
        return Keys(file.path, count)
    return _scan(file, length, problem)


def _fits(file: LmdbFile, count: int) -> bool:
    if count == 0:
        return True
    return all(file.get(b"%d" % number) is not None for number in (0, count - 1))


def _scan(file: LmdbFile, length: int | None, problem: str | None) -> Keys:
    """Read all keys and list what is wrong with them."""
    numbers, foreign = [], []
    for key in file:
        if key.isdigit() and (key[0] != 0x30 or key == b"0") and len(key) < 19:
            numbers.append(int(key))
        elif key != LENGTH:
            foreign.append(key)
    problems = [] if problem is None else [("length", problem)]
    if length is not None and length != len(numbers):
        problems.append(
            (
                "length",
                f"`length` says {length}, but the file has {counted(len(numbers), 'record')}",
            )
        )
    if foreign:
        problems.append(
            ("keys", f"{counted(len(foreign), 'key')} other than numbers: {_some(foreign)}")
        )
    numbers.sort()
    count = len(numbers) and numbers[-1] + 1
    # one stray number must not make a huge data set of missing records
    if count > 2 * len(numbers) + 1000:
        raise Refused("keys", f"its keys are not a numbering from 0: the largest is {count - 1}")
    missing = sorted(set(range(count)).difference(numbers)) if count != len(numbers) else []
    if missing:
        problems.append(("missing", f"{counted(len(missing), 'key')} missing: {_some(missing)}"))
    return Keys(file.path, count, problems, missing)


def _some(items: list[int] | list[bytes]) -> str:
    shown = ", ".join(str(item) for item in items[:_SHOWN])
    return shown + (", ..." if len(items) > _SHOWN else "")
